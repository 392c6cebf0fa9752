# Every target sets up what it needs in .venv: Python >= 3.10, a C++ compiler and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CSRC   := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
TOOLS  := $(shell find tools tests/tools -name '*.cpp' -o -name '*.h' -o -name '*.cu')
INPUTS := setup.py pyproject.toml constraints.txt scripts/setup_env.sh scripts/build_cuda.py $(CSRC)

.PHONY: help build ablation test lint check bench sanitize mutants gpu-check tables clean
.DELETE_ON_ERROR:

help:
	@echo "make ablation   build, train both quick grids in results/local, print their tables"
	@echo "make test       build, lint, run all tests"
	@echo "make lint       formatters, linters and the type checker only"
	@echo "make check      the fast half of the tests"
	@echo "make bench      time the core cases of router and layer with pytest-benchmark"
	@echo "make sanitize   the CUDA kernels on the CPU under Address-, UndefinedBehavior- and ThreadSanitizer"
	@echo "make mutants    the CUDA kernels without each of their barriers in turn: every one must be missed"
	@echo "make gpu-check  registers, occupancy, traffic of the CUDA kernels against their bounds; needs nvcc, no GPU"
	@echo "make tables     rebuild the committed tables and figures from the committed records"
	@echo "make build      set up $(VENV), compile the extension, and the CUDA library where nvcc is found"
	@echo "make clean      remove the build and $(VENV)"

# One stamp for those who run, one for those who develop; both are renewed when csrc changes.
$(VENV)/.suite: $(INPUTS)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite
$(VENV)/.dev: $(INPUTS)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite,dev
$(VENV)/.gpu-check: $(INPUTS)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite,gpu-check

build: $(VENV)/.suite

ablation: $(VENV)/.suite
	$(BIN)/moge-bench ablate ablations/quick.yaml --results results/local
	$(BIN)/moge-bench ablate ablations/quick_lm.yaml --results results/local

tables: $(VENV)/.suite
	$(BIN)/moge-bench tables --results results
	$(BIN)/moge-bench figures --results results
	$(BIN)/python scripts/update_readme.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(TOOLS)

test: lint
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

bench: $(VENV)/.dev
	$(BIN)/python -m pytest tests/perf/test_core_benchmarks.py --benchmark-enable

sanitize: $(VENV)/.dev
	$(BIN)/python -m tools.simt.sanitize

mutants: $(VENV)/.dev
	$(BIN)/python -m tools.simt.mutants

gpu-check: $(VENV)/.gpu-check
	$(BIN)/python -m tools.gpu_check

clean:
	rm -rf build $(VENV) moge_bench/*.so *.egg-info
