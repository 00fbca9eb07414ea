# Everything that a fresh machine needs: python3 (>= 3.10, with venv), make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Each extra leaves a stamp: the second run installs nothing, and a changed pyproject.toml installs again.
DEMO_STAMP := $(VENV)/.installed-lab
TEST_STAMP := $(VENV)/.installed-test
SLOW_STAMP := $(VENV)/.installed-slow
DOCS_STAMP := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow docs lint format clean

demo: $(DEMO_STAMP)
	$(BIN)/polarize demo $(ARGS)

test: $(TEST_STAMP) lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(SLOW_STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TEST_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[lab]"
	touch $@

$(TEST_STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[test]"
	touch $@ $(DEMO_STAMP)

$(SLOW_STAMP): $(TEST_STAMP)
	$(PIP) --editable ".[test,ray]"
	touch $@

$(DOCS_STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache
