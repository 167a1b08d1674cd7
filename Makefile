# Two commands from a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test quick check format docs bench posteriors mutations clean

demo: $(STAMP)  ## sample a real posterior, map one photograph's colours to another's: see demo/
	$(BIN)/python examples/breast_cancer.py --out demo
	$(BIN)/python examples/colour_transfer.py --out demo

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -n 2 -m "not long"

quick: $(STAMP)  ## the quick part of the tests
	$(BIN)/python -m pytest -n 2 -m "not slow and not long"

check: $(STAMP)  ## what a commit must pass: format, lint, types, quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) quick

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

posteriors: $(STAMP)  ## six posteriors against reference draws: make posteriors DATA=<folder>
	$(BIN)/python -m examples.posteriors $(if $(DATA),--data $(DATA))

mutations: $(STAMP)  ## break the code on purpose; every break must be caught
	$(BIN)/python -m tests.laws.mutations

docs: $(STAMP)  ## the documentation, in site/
	$(BIN)/python -m mkdocs build --strict

bench: $(STAMP)  ## install the peers and run every benchmark
	$(BIN)/python -m pip install -q -e ".[bench]"
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[all]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo site .pytest_cache .ruff_cache
