# Every command of the project; CI and the README call these and nothing of their own. A clean clone needs Python 3.11-3.13,
# its headers, a C++20 compiler and make. Everything else goes into $(VENV) at the versions in constraints.txt.
# Not Python 3.14: its standard library has a package named `compression`, which would hide ours.

VENV ?= .venv
PORT ?= 8000
# PYTHON=/path/to/python picks the interpreter; left empty, the first fitting one is taken.
PYTHON ?=
INTERPRETERS := python3 python3.13 python3.12 python3.11

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# What a new build or a new resolution depends on. Python sources are not here: the install is editable.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find engine/src -type f 2>/dev/null)
# Tests that may run side by side: no deadlines. File by file, because what a file's tests share is made once.
PARALLEL := tests/compression tests/engine tests/bench

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup serve test check bench models lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PORT=$(PORT) VENV=$(VENV) PYTHON=<interpreter, 3.11 to 3.13>"

setup: $(VENV)/.dev $(VENV)/.clients ## Install everything a developer needs: service, trainer, tests

serve: $(VENV)/.service ## Build the engine and serve the embedded models on PORT (default 8000); no torch needed
	@echo "==> Serving on http://localhost:$(PORT) (Ctrl-C stops, PORT=... picks another port)"
	@SPARSELANE_PORT=$(PORT) exec $(BIN)/sparselane serve

test: check $(VENV)/.clients ## Run the checks, then all tests
	@echo "==> Tests of the trainer, the engine and the bench, several at once"
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(PARALLEL)
	@echo "==> Tests of the service and of what is deployed, one after another: they need the machine's attention"
	@$(BIN)/python -m pytest $(PARALLEL:%=--ignore=%)

check: $(VENV)/.dev ## Lint, formatting, types
	@echo "==> ruff check, ruff format, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# LEVEL="model --quick" and the like; the peers' environments are large and are made here alone.
bench: LEVEL ?= all
bench: $(VENV)/.dev .venv-bench/.made ## Run the benchmarks (see bench/)
	@$(BIN)/python -m bench $(LEVEL)

models: DATA ?= data
models: $(VENV)/.dev ## Train, embed and judge the models again, from the data sets in DATA (hours; goes on after a stop)
	@$(BIN)/python -m bench.embedded --data "$(DATA)"

lock: $(VENV)/.dev ## Write the environment's versions into constraints.txt, with hashes into image/*.lock
	@grep '^#' constraints.txt > $(VENV)/constraints.new
	@$(PIP) freeze --exclude sparselane | sed 's/+cpu$$//' >> $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt
	@$(BIN)/python -m image.lock
	@touch $(VENV)/.tools $(VENV)/.service $(VENV)/.dev

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) .venv-bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find service engine compression tests bench image -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew when the pins change. What cannot be installed is named, and its engines are absent from the record.
.venv-bench/.made: bench/environments.py $(wildcard bench/pins/*.txt) | $(VENV)/.dev
	@$(BIN)/python -m bench.environments
	@touch $@

# A stamp is touched only after its install succeeded, so a broken install is tried again.
$(VENV)/.python:
	@for python in $(or $(PYTHON),$(INTERPRETERS)); do \
	    if "$$python" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then \
	        echo "==> Creating $(VENV) with $$("$$python" -V)" && "$$python" -m venv $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "error: no Python 3.11, 3.12 or 3.13 with venv and ensurepip among: $(or $(PYTHON),$(INTERPRETERS))." >&2; \
	echo "       Install one (on Debian also its python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1

$(VENV)/.tools: constraints.txt | $(VENV)/.python
	@command -v $${CXX:-c++} >/dev/null || { echo "error: no C++ compiler ($${CXX:-c++}): install g++ or clang, or set CXX" >&2; exit 1; }
	@$(BIN)/python -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file())' || { \
	    echo "error: no Python.h, the headers of $$($(BIN)/python -V), which the engine is compiled with: on Debian install python3-dev" >&2; exit 1; }
	@echo "==> Installing the build tools"
	@$(PIP) install --constraint constraints.txt scikit-build-core nanobind cmake ninja
	@touch $@

# Without an isolated build the engine is compiled by tools that stay, so its build folder stays valid between installs.
$(VENV)/.service: $(VENV)/.tools $(SOURCES)
	@echo "==> Building the engine and installing the service"
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable .
	@touch $@

# By name: the package just installed stays as it is, only what its extras ask for is added.
$(VENV)/.dev: $(VENV)/.service
	@echo "==> Installing the trainer and the test tools (torch takes a while the first time)"
	@$(PIP) install --constraint constraints.txt 'sparselane[dev,compression]'
	@touch $@

# What only tests compare with, each in a folder of its own: an older transformers and huggingface_hub, the schemas of
# Kubernetes' custom resources, a JavaScript client.
$(VENV)/.clients: tests/pins/transformers4.txt tests/pins/crds.txt $(wildcard tests/service/javascript/package*.json) | $(VENV)/.dev
	@echo "==> Installing the clients, schemas and the older transformers that tests compare with"
	@rm -rf $(VENV)/transformers4 $(VENV)/crds $(VENV)/javascript
	@$(PIP) install --no-deps --target $(VENV)/transformers4 --requirement tests/pins/transformers4.txt
	@$(PIP) install --no-deps --target $(VENV)/crds --requirement tests/pins/crds.txt
	@if command -v npm >/dev/null; then \
	    mkdir -p $(VENV)/javascript && cp tests/service/javascript/package*.json $(VENV)/javascript && \
	    npm ci --silent --no-audit --no-fund --prefix $(VENV)/javascript; \
	else echo "note: no npm here: the tests with JavaScript clients will be skipped"; fi
	@touch $@
