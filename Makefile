# demo       install fastprobe and scan the demo model
# real       download four trained models and a tagged text (0.7 GB), and check them
# test       run all tests
# oldest     run a fast part of the tests with the oldest supported versions of all libraries but torch
# check      run linters and the type checker
# docs       build the documentation site in docs/_build, with warnings as errors
# notebooks  run the notebooks of docs/tutorials and write their outputs into them
# figures    make the pictures of docs/which_score.md
# catalogue  test all model types of Transformers, and write docs/models.md; takes half an hour
# bench      run the benchmarks on this machine
# compile    compile the C++ kernels after a change in csrc/
# sanitize   run the tests of the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer
# resources  print registers and shared memory of the Triton kernels; needs no GPU
# gpu        measure everything on a machine with a GPU; gpu-second is the second half

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest

.PHONY: demo real test oldest catalogue check docs notebooks figures compile sanitize bench resources gpu gpu-first gpu-second

demo: $(VENV)/demo
	$(BIN)/fastprobe linearity --out fastprobe-out/demo --overwrite

real: $(VENV)/real
	$(BIN)/fastprobe download

test: $(VENV)/dev
	$(BIN)/python -m pytest

oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -m 'not slow and not gpu' $(OLDEST_TESTS)

catalogue: $(VENV)/dev
	FASTPROBE_CATALOGUE=all $(BIN)/python -m pytest tests/catalogue
	PYTHONPATH=. $(BIN)/python tests/catalogue/table.py > docs/models.md

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A fresh environment of Sphinx (-E), because the contents of the site are in conf.py.
docs: $(VENV)/dev
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build

notebooks: $(VENV)/dev
	$(BIN)/python docs/tutorials/run.py

figures: $(VENV)/demo
	$(BIN)/python docs/figures/which_score.py

$(VENV)/demo: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/real: $(VENV)/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,real]'
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,data,train,docs,dev]'
	touch $@

# The C++ kernels are those of the other environment, or none.
OLDEST_TESTS = tests/cli/test_app.py tests/cli/test_pretrain_command.py tests/models/test_points.py \
	tests/models/test_permute.py tests/models/test_stack.py tests/models/test_linear_mlp.py \
	tests/models/unpadded/test_refusals.py tests/pretraining/test_costs.py tests/results tests/scan/test_linearity.py \
	tests/test_odd_batches.py tests/regression/test_linear_fit.py
$(OLDEST)/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	FASTPROBE_BUILD=none $(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt \
		--editable '.[demo,data,train]' pytest pytest-benchmark hypothesis scikit-learn concept-erasure
	touch $@

# Each kind of build has its own folder, because setuptools does not compile again when only flags change.
build = $(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/$(1) --build-lib build/$(1)

compile: $(VENV)/dev
	$(call build,native)

sanitize: sanitize-address sanitize-undefined

# Leak detection is off, because Python itself leaks. test_triton.py is left out: torch.compile crashes under a sanitizer,
# and Triton kernels contain no C++. The normal build is restored afterwards, also if tests fail.
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

# For a machine with a GPU, torch, Triton, Transformers, pytest and pybind11, but no package index: nothing is installed.
# Each call takes at most five minutes: `make gpu`, then `make gpu-second`. benchmarks/gpu/run.py says what they do.
GPU_OUT ?= benchmarks/results/gpu
GPU_SECONDS ?= 290
gpu: gpu-first
gpu-first:
	TRITON_INTERPRET=0 $(PYTHON) -m benchmarks.gpu.run 1 --out $(GPU_OUT)/first --seconds $(GPU_SECONDS)
	cat $(GPU_OUT)/first/table.md
gpu-second:
	TRITON_INTERPRET=0 $(PYTHON) -m benchmarks.gpu.run 2 --out $(GPU_OUT)/second --seconds $(GPU_SECONDS)
	cat $(GPU_OUT)/second/table.md
