# make demo | test | lint | bench | gpu | core | wheel | clean. Each target does its own set-up; a second run reuses it.
#
#   PYTHON         interpreter that makes the virtual environment (3.10 or newer)
#   VENV           where the virtual environment goes
#   TORCH_VERSION  torch to install; the CPU build where pip can find one
#   AUDIO          noisy file for `make demo`
#   TESTS          what `make test` runs
#   BENCH_OUT      where `make bench` writes its results
#   GPU_PYTHON     interpreter with torch for CUDA, for `make gpu`; no virtual environment is made
#   GPU_SECONDS    time for all of `make gpu`
#   CXX            C++ compiler, for `make core` a cross compiler, too
#   CORE_OUT       where `make core` puts the library, its header and the example

PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
AUDIO ?=
TESTS ?= tests
BENCH_OUT ?= bench-out
GPU_PYTHON ?= python3
GPU_SECONDS ?= 460
CORE_OUT ?= build/core
BIN := $(VENV)/bin
NATIVE := $(shell find csrc benchmarks tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup build demo test lint bench gpu core wheel clean

setup: $(VENV)/.ready

# The extension is left to `build`: CXX may be a cross compiler here, for `core`.
$(VENV)/.ready: pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null \
		|| $(BIN)/pip install --quiet "torch==$(TORCH_VERSION)+cpu" 2>/dev/null \
		|| $(BIN)/pip install --quiet "torch==$(TORCH_VERSION)"
	$(BIN)/pip install --quiet 'setuptools>=77' wheel ninja numpy
	DYNCP_NO_EXTENSION=1 $(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

# Only what changed is compiled again.
build: setup
	$(BIN)/python setup.py --quiet build_ext --inplace

demo: build
	$(BIN)/dyncp demo $(if $(AUDIO),"$(AUDIO)") --out demo-out

test: build
	$(BIN)/python -m pytest $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/mypy

bench: build
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m pytest benchmarks --benchmark-only
	$(BIN)/dyncp bench --out $(BENCH_OUT)

# Builds, tests and measures on a GPU with the interpreter found there; needs no network.
gpu:
	$(GPU_PYTHON) benchmarks/run_gpu.py --seconds $(GPU_SECONDS)

# The streaming engine for programs without Python and torch: libdyncp.a, dyncp.h and the example enhance_wav.
core: setup
	$(BIN)/python setup.py --quiet build_core --folder $(CORE_OUT)

wheel: setup
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist demo-out bench-out dyncp_kernels.egg-info dyncp_kernels/*.so
