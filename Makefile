# From a fresh clone: needs make, python3 (>= 3.11) with venv, and the network for the installation.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# Python 3.11 has its own pins because jax 0.10 is the last release for it.
VERSION = $$($(BIN)/python -c 'import sys; print("311" if sys.version_info < (3, 12) else "313")')
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  -c constraints/py$(VERSION).txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format build clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile
	@echo 'Another Python: make test PYTHON=python3.13 VENV=.venv313'

demo: $(VENV)/.installed  ## pre-train the embedded demonstration on the CPU, into runs/demo
	$(BIN)/python -m gsjax.main --config configs/demo.py --workdir runs/demo

test: lint  ## lint, then all tests but the slow ones (more options: PYTEST_ARGS="-x -k losses")
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: lint  ## lint, then all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

build: $(VENV)/.installed-dev  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove the environment, build products and tool caches; runs/ stays
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build dist gsjax.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gsjax configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# gsjax/__init__.py is here because the installed version number comes from it.
$(VENV)/.installed: pyproject.toml gsjax/__init__.py $(wildcard constraints/*.txt)
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'error: $(PYTHON) not found; name a Python >= 3.11: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: gsjax needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@
