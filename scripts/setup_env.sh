#!/bin/sh
# Usage: setup_env.sh VENV [EXTRAS]. Creates VENV and installs the pinned set: without EXTRAS what the
# extension is compiled with and against, else this project, editable and not compiled, with what the
# extras name. Leaves the stamp VENV/.torch or VENV/.<last extra>. Every failure ends with one sentence.
set -u
venv=$1 extras=${2-}
log=$venv/setup.log

fail() {
    echo "setup: $1" >&2
    exit 1
}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "Python >= 3.10 is needed; '$PYTHON' is $("$PYTHON" -V 2>&1). Name another: make PYTHON=python3.11 ..."
# CXX may be several words: the compiler behind ccache, or with flags.
set -- ${CXX:-c++}
command -v "$1" >/dev/null || command -v g++ >/dev/null ||
    fail "a C++ compiler is needed and none was found; install g++ (10 or later) or set CXX."
[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv" ||
    fail "no virtual environment could be made in '$venv'; on Debian: apt install python3-venv."

[ -f "$venv/pyvenv.cfg" ] ||
    fail "'$venv' is no virtual environment: what is installed there would go elsewhere; name another: make VENV=..."

run() {
    what=$1
    shift
    echo "setup: $what"
    "$@" >>"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        fail "$what failed; its output stands above and in $log."
    }
}

: >"$log"
pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt"
if [ -z "$extras" ]; then
    run "installing torch" $pip torch setuptools wheel pybind11 ninja
    touch "$venv/.torch"
else
    export MOGE_COMPILE=0 # `make kernels` compiles, in the source tree
    run "installing moge-bench[$extras]" $pip --no-build-isolation --editable ".[$extras]"
    touch "$venv/.${extras##*,}"
fi
