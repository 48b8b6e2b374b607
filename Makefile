# Every target does its own set-up, in .venv, and says so; a second call finds it done.
#
#   PYTHON=python3.12 make test      another interpreter
#   TORCH_INDEX=<url> make demo      another index for torch, e.g. that of its CPU-only builds
#   ARGS="--quick" make bench        arguments for the command

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -qq --constraint constraints.txt
EDITABLE := $(INSTALL) --no-build-isolation --editable
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h csrc/cuda/*)
DECLARED := pyproject.toml setup.py constraints.txt
SAY := @printf '==> %s\n'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench gpu gpu-offline lint format sanitize check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMPS)/train $(STAMPS)/kernels ## train a small search model on your machine's docstrings, and ask it something
	$(SAY) "Training on the docstrings of the installed packages, into runs/demo"
	@$(BIN)/contrastive-ops train docs --output runs/demo $(ARGS)
	$(SAY) 'contrastive-ops search --model runs/demo "read a file line by line"'
	@$(BIN)/contrastive-ops search --model runs/demo "read a file line by line"

test: $(STAMPS)/test $(STAMPS)/kernels ## run the tests
	$(SAY) "Running the tests"
	@# Threads that wait do not spin: there are as many test processes as cores already.
	@OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

bench: $(STAMPS)/bench $(STAMPS)/kernels ## measure against the peers, into benchmarks/results, and refresh README's table
	$(SAY) "Measuring; other work on this machine makes the numbers worse"
	@$(BIN)/contrastive-ops bench $(ARGS)
	@$(BIN)/python -m contrastive_ops.benchmarks.report

# No set-up: a GPU machine brings its own python with torch and Triton.
gpu: ## check and measure the GPU backend on this machine's GPU, with PYTHON as it is
	@$(PYTHON) benchmarks/run_gpu.py $(ARGS)

gpu-offline: $(STAMPS)/test ## compile every GPU kernel for every architecture, without a GPU
	@$(BIN)/python -m contrastive_ops.benchmarks.gpu_offline $(ARGS)

lint: $(STAMPS)/test ## check style and types
	$(SAY) "ruff check"
	@$(BIN)/ruff check
	$(SAY) "ruff format --check"
	@$(BIN)/ruff format --check
	$(SAY) "mypy"
	@$(BIN)/mypy

format: $(STAMPS)/test ## rewrite the sources in the project's style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

sanitize: $(STAMPS)/test ## run the kernels under the address, undefined-behaviour and thread sanitizers
	$(SAY) "Kernels alone, on their own threads: thread sanitizer"
	@tests/kernel/run_races thread
	$(SAY) "Building the package with the address and undefined-behaviour sanitizers, apart"
	@rm -rf build/sanitize/lib
	@CONTRASTIVE_OPS_SANITIZE=address,undefined CONTRASTIVE_OPS_REQUIRE_EXTENSION=1 \
		$(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	$(SAY) "Running the kernels' tests on it"
	@tests/kernel/under_sanitizers build/sanitize/lib $(BIN)/python -n auto --maxprocesses 4 $(ARGS)

check: lint test sanitize ## all of it, before a release

clean: ## remove what was built and measured here; the environment, too
	rm -rf $(VENV) build dist runs *.egg-info contrastive_ops/_build.json contrastive_ops/_C*.so contrastive_ops/_cuda.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "contrastive-ops needs Python 3.11 or newer; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Try: PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1; }
	$(SAY) "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# First and alone, so that whatever comes later finds the torch it asks for already there.
$(STAMPS)/torch: $(STAMPS)/python constraints.txt
	$(SAY) "Installing PyTorch (the one large download)"
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(INSTALL) setuptools wheel ninja
	@touch $@

$(STAMPS)/train: $(STAMPS)/torch $(DECLARED)
	$(SAY) "Installing contrastive-ops and what training needs; compiling its kernels"
	@$(EDITABLE) '.[train]'
	@touch $@ $(STAMPS)/kernels

$(STAMPS)/bench: $(STAMPS)/torch $(DECLARED)
	$(SAY) "Installing contrastive-ops and what the benchmarks need; compiling its kernels"
	@$(EDITABLE) '.[bench,train]'
	@touch $@ $(STAMPS)/train $(STAMPS)/kernels

$(STAMPS)/test: $(STAMPS)/torch $(DECLARED)
	$(SAY) "Installing contrastive-ops and what its tests need; compiling its kernels"
	@$(EDITABLE) '.[train,bench,test]'
	@touch $@ $(STAMPS)/bench $(STAMPS)/train $(STAMPS)/kernels

# Only what changed is compiled. Without a compiler this says so and goes on.
$(STAMPS)/kernels: $(CPP) | $(STAMPS)/torch
	$(SAY) "Compiling the kernels"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
