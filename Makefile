# `make` prints the targets. Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test faults audit mutants format clean

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/developing: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## train the bundled toy corpus, translate a few lines, score the test split
	$(BIN)/mtattn train toy
	printf '%s\n' 'The car that Emma repaired is green.' 'The teacher went to the park yesterday to play chess.' \
		'Emma cannot water the red rose this evening because she has a fever.' | $(BIN)/mtattn translate runs/toy
	$(BIN)/mtattn eval runs/toy

test: $(VENV)/developing  ## check formatting, lint, types, and run all fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=benchmarks $(BIN)/mypy --explicit-package-bases benchmarks/*.py
	$(BIN)/pytest -n 2

$(VENV)/exporting: $(VENV)/developing
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,export]'
	touch $@

faults: $(VENV)/exporting  ## the long tests, which `make test` leaves out: kills at every point and at random
	$(BIN)/pytest -m slow -n 2

audit: $(VENV)/developing  ## look for known vulnerabilities in the packages that are installed, by pip-audit
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("https://pypi.org/pypi/pip/json", timeout=10)' 2>/dev/null; \
	then $(BIN)/pip install --quiet pip-audit && $(BIN)/pip-audit --local --skip-editable --progress-spinner off; \
	else echo 'audit: skipped, since pypi.org, which lists vulnerabilities, cannot be reached from here'; fi

mutants: $(VENV)/developing  ## break the attention package in many small ways; the tests must notice
	$(BIN)/python tests/attention/mutants.py

format: $(VENV)/developing  ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and what tools left; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
