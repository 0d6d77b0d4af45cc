# demo: the first number · test: the whole suite · check: linters and types · bench: timings on this machine

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench

demo: $(VENV)/demo
	$(BIN)/fastprobe linearity

test: $(VENV)/dev
	$(BIN)/python -m pytest

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/demo: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,data,dev]'
	touch $@

bench: $(VENV)/dev
	$(BIN)/python -m pytest benchmarks -m 'not slow' -o python_files='bench_*.py' -o python_functions='bench_*' \
		--benchmark-json=benchmarks/results/latest.json
	$(BIN)/python benchmarks/report.py benchmarks/results/latest.json
