PYTHON ?= python3
BIN = .venv/bin
PYTEST = $(BIN)/pytest -n 2 --dist worksteal

# tests are rewritten and checked while they are imported, half a minute of each process: kept for the next run
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo serve test test-slow test-gpu test-all test-of benchmark coverage docs stubs schemas tutorials versions clean

demo: .venv/ready
	$(BIN)/weightspace demo

serve: .venv/ready
	$(BIN)/weightspace serve $(ATLAS)

test: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

test-slow: .venv/ready-dev
	$(PYTEST) -m slow

# what runs on an accelerator, compared with the CPU: results, memory, waits
test-gpu: .venv/ready-dev
	$(BIN)/pytest -n 0 -m gpu tests/gpu

# tests of the file F: those of its name, else those of its part of a wing, else those of the wing
WHERE = $(subst /, ,$(patsubst src/weightspace/%,%,$(basename $(F))))
WING = tests/$(firstword $(WHERE))
OF = $(filter tests/%,$(F)) $(wildcard $(foreach name,$(lastword $(WHERE)) $(word 2,$(WHERE)),$(WING)/test_$(name).py) $(WING))

test-all: test test-slow

test-of: .venv/ready-dev
	$(PYTEST) $(or $(firstword $(OF)),tests)

# the whole benchmark in half an hour: fails where a ratio is a quarter worse than in its table; ACCEPT=1 writes the table
benchmark: .venv/ready-dev
	$(BIN)/python -m benchmarks.quick $(if $(ACCEPT),--accept)

coverage: .venv/ready-dev
	$(PYTEST) --cov=weightspace --cov-report=term:skip-covered

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[web]"
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[data,dev]"
	touch $@

# the documentation as a site that works offline: open build/site/index.html
docs: .venv/ready-docs
	PYTHONPATH=src $(BIN)/python -m docs._site build/site

.venv/ready-docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# the type stubs of the packages, from their tables of contents
stubs: .venv/ready
	$(BIN)/python tests/stubs.py

# the notebooks of docs/tutorials run anew, their outputs written into them; figures are drawn by chromium
tutorials: .venv/ready-docs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.tutorials.execute $(F)

# the JSON Schemas of what commands print, and the table of their keys
schemas: .venv/ready
	$(BIN)/python tests/schemas.py

# a part of the tests in fresh environments, for several versions of Python and torch
versions: .venv/ready-dev
	$(BIN)/python tests/versions.py

clean:
	rm -rf .venv
