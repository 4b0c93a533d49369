# `make demo` in a fresh clone does all that is needed. TORCH_FLAGS chooses the torch build, see README.md.

PYTHON ?= python3
TORCH_FLAGS ?=
# Processes that share the tests; a file stays in one, for its fixtures are dear.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench clean

help:
	@echo "make setup      virtual environment in $(VENV); TORCH_FLAGS='...' goes to pip for torch"
	@echo "make demo       attack a small CT chain and write runs/report.html (minutes)"
	@echo "make test       tests, in WORKERS=2 processes; make test-slow runs those that take minutes as well"
	@echo "make check      lint, formatting, types, import order; make format fixes what can be fixed"
	@echo "make bench      operator benchmarks"
	@echo "make clean      remove caches; runs and $(VENV) stay"

setup: $(READY)

# torch comes first and alone, so that the build chosen for it is not replaced while the rest is resolved.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tomosec needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_FLAGS) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	touch $@

demo: $(READY)
	$(BIN)/tomosec demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow or not slow' --timeout 3600

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python benchmarks/operators.py

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
