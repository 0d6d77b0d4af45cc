# demo: the first number · test: the whole suite · check: linters and types · bench: timings on this machine
# compile: the C++ kernels again, after a change to csrc/ · sanitize: their tests under two sanitizers

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check compile sanitize bench

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

compile: $(VENV)/dev
	$(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/native

# Leaks are not looked for: Python itself has some.
SANITIZED = $(BIN)/python -m pytest tests/native/test_cpu.py tests/ops
sanitize: $(VENV)/dev
	CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer" LDFLAGS="-fsanitize=address" \
		$(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/address
	LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 $(SANITIZED)
	CXXFLAGS="-fsanitize=undefined -fno-sanitize-recover=undefined" LDFLAGS="-fsanitize=undefined" \
		$(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/undefined
	$(SANITIZED)
	$(MAKE) compile

bench: $(VENV)/dev
	$(BIN)/python -m pytest benchmarks -m 'not slow' -o python_files='bench_*.py' -o python_functions='bench_*' \
		--benchmark-json=benchmarks/results/latest.json
	$(BIN)/python benchmarks/report.py benchmarks/results/latest.json
