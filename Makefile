PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-slow test-all test-of coverage clean

demo: .venv/ready
	$(BIN)/weightspace demo

test: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/ready-dev
	$(BIN)/pytest -n 2 -m slow

test-all: test test-slow

test-of: .venv/ready-dev
	$(BIN)/pytest -n 2 $(wildcard tests/$(notdir $(patsubst %/,%,$(dir $(F))))/test_$(notdir $(F))) \
		$(if $(wildcard tests/$(notdir $(patsubst %/,%,$(dir $(F))))/test_$(notdir $(F))),,tests/$(notdir $(patsubst %/,%,$(dir $(F)))))

coverage: .venv/ready-dev
	$(BIN)/pytest -n 2 --cov=weightspace --cov-report=term:skip-covered

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[data,dev]"
	touch $@

clean:
	rm -rf .venv
