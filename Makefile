# From a fresh clone: needs make, python3 (>= 3.11) with venv, and the network for the installation.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Processes of the tests, for two cores: some wait. Each takes 2 to 4 GB of memory.
WORKERS ?= 3

BIN := $(VENV)/bin
# Python 3.11 has its own pins because jax 0.10 is the last release for it.
VERSION = $$($(BIN)/python -c 'import sys; print("311" if sys.version_info < (3, 12) else "313")')
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  -c constraints/py$(VERSION).txt

# A file's tests share what they have trained: they stay in one process.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs build clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile
	@echo 'Another Python: make test PYTHON=python3.13 VENV=.venv313'

demo: $(VENV)/.installed  ## pre-train the embedded demonstration on the CPU, report in runs/demo
	$(BIN)/python -m gsjax.main --config configs/demo.py --workdir runs/demo --config.platform=cpu
	$(BIN)/python -m gsjax.main --job report --workdir runs/demo --config.platform=cpu

test: lint  ## lint, then all tests but the slow ones (more options: PYTEST_ARGS="-x -k losses")
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: lint $(VENV)/.installed-docs  ## lint, then all tests
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The variable silences the theme's announcement of its successor: warnings here are of our pages.
docs: $(VENV)/.installed-docs  ## build the guide and the API reference into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet -f docs/mkdocs.yml
	@echo 'open site/index.html'

build: $(VENV)/.installed-dev  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove the environment, build products and tool caches; runs/ stays
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build dist site gsjax.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gsjax configs docs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# gsjax/__init__.py is here because the installed version number comes from it.
$(VENV)/.installed: pyproject.toml gsjax/__init__.py $(wildcard constraints/*.txt)
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'error: $(PYTHON) not found; name a Python >= 3.11: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: gsjax needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[report]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	@touch $@
