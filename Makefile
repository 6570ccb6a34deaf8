# Penstock. `make` prints what there is.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_WORKERS ?= 2

.PHONY: help demo up test lint bench chaos lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/runtime ## see all of it: real documents summarised by rate-limited worker pools
	@$(BIN)/penstock demo

up: $(VENV)/runtime ## run the whole stack for development until Ctrl-C
	@$(BIN)/penstock up

test: $(VENV)/development ## run the whole suite on embedded services
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadscope

lint: $(VENV)/development ## check style, types, import contracts and the prompts' lock
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m penstock.prompts check

bench: $(VENV)/development ## list the benchmarks, or run one: make bench NAME=pool
	@$(BIN)/python -m bench $(NAME)

chaos: $(VENV)/development ## kill everything at every point, then by chance; SHORT=--short takes a minute
	@$(BIN)/python -m pytest -q tests/system/test_crash_matrix.py
	@$(BIN)/python -m bench chaos $(SHORT)

lock: ## renew requirements.lock and requirements-dev.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements.lock
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -c requirements.lock -o requirements-dev.lock

clean: ## remove the environment and the data of the embedded services
	rm -rf $(VENV) .penstock

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Penstock needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 demo"; exit 1; }
	@echo "making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/runtime: requirements.lock pyproject.toml | $(VENV)/bin/uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(VENV)/development: requirements-dev.lock pyproject.toml | $(VENV)/bin/uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(VENV)/runtime $@
