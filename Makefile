# demo: the first number · test: the whole suite · check: linters and types · bench: timings on this machine
# compile: the C++ kernels again, after a change to csrc/ · sanitize: their tests under two sanitizers
# resources: registers and memory of the Triton kernels, without a GPU · gpu: tests and timings on a machine with one

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check compile sanitize bench resources gpu

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
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,data,train,dev]'
	touch $@

# A folder for each kind of build: setuptools takes what lies there for up to date, whatever flags made it.
build = $(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/$(1) --build-lib build/$(1)

compile: $(VENV)/dev
	$(call build,native)

sanitize: sanitize-address sanitize-undefined

# Leaks are not looked for: Python itself has some. torch.compile dies under a sanitizer that was loaded before it, so
# what the Triton kernels are to torch is left out; they hold no C++. Whatever the tests say, the fast build is back after
# them.
sanitize-%: $(VENV)/dev
	CXXFLAGS="-fsanitize=$* -fno-sanitize-recover=$* -fno-omit-frame-pointer" LDFLAGS="-fsanitize=$*" \
		$(call build,$*)
	LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/python -m pytest tests/native/test_cpu.py tests/ops --ignore=tests/ops/test_triton.py; passed=$$?; \
		rm fastprobe/_cpu.*; $(MAKE) compile; exit $$passed

bench: $(VENV)/dev
	$(BIN)/python -m pytest benchmarks -m 'not slow and not gpu' -o python_files='bench_*.py' -o python_functions='bench_*' \
		--benchmark-json=benchmarks/results/latest.json
	$(BIN)/python benchmarks/report.py benchmarks/results/latest.json

resources: $(VENV)/dev
	TRITON_INTERPRET=0 $(BIN)/python tests/kernels/compiled.py

# For a machine that has torch, Triton, Transformers, pytest and pytest-benchmark, but no package index: nothing is
# installed, and no file is read that imports more. Where a compiler is missing its kernels are left out, and the table
# says so. A benchmark that misses its gate, or a run that is out of time (SIGINT, so that what was measured is written),
# stops nothing: the table has the rows there are.
GPU_ENV ?= TRITON_INTERPRET=0
GPU_PYTEST = $(GPU_ENV) PYTHONPATH=$(CURDIR) PYTHONUNBUFFERED=1 timeout --signal=INT --kill-after=20 $(1) \
	$(PYTHON) -m pytest -q --tb=short
GPU_TESTS = $(shell grep --recursive --files-with-matches pytest.mark.gpu tests)
GPU_BENCHES = $(patsubst %,benchmarks/bench_%.py,gpu gpu_encoder update solve fit)
GPU_OUT ?= benchmarks/results/latest
gpu:
	-$(PYTHON) setup.py --quiet build_ext --inplace --build-temp build/native --build-lib build/native
	-$(call GPU_PYTEST,120) $(GPU_TESTS)
	-$(call GPU_PYTEST,320) $(GPU_BENCHES) -o python_files='bench_*.py' -o python_functions='bench_*' \
		--benchmark-json=$(GPU_OUT).json
	$(PYTHON) benchmarks/report.py $(GPU_OUT).json > $(GPU_OUT).md
	cat $(GPU_OUT).md
