# make demo   audit a real dataset            make test         tests, lint, types, docs
# make dev    the Dagster UI on 127.0.0.1     make test-system  what needs a browser (Debian)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch's CPU wheels are 200 MB instead of 5 GB:  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DQ_HOME ?= data
DEMO ?= openmoji
PORT ?= 3000
export DQ_HOME

.PHONY: demo dev test test-system lint types docs bench clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/dq-assets demo $(DEMO)

dev: $(VENV)/.installed
	test -n "$$(ls $(DQ_HOME)/datasets 2>/dev/null)" || $(BIN)/dq-assets demo $(DEMO)
	DQ_HOME=$(abspath $(DQ_HOME)) DAGSTER_HOME=$(abspath $(DQ_HOME))/dagster $(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $(PORT)

test: $(VENV)/.installed lint types docs
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-system: $(VENV)/.installed
	test -x /usr/bin/chromium || (apt-get update -qq && apt-get install -y -qq chromium)
	$(BIN)/python -m pytest -m system

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python -m docs.generate --check

bench: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)
