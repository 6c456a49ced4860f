# make demo   environment, a small corpus, dense and 75 % sparse pre-training, and the comparison (ten minutes, two cores)
# make test   the tests (the ones on real data run where MEDISWIFT_SHARED names their folder)
# make help   the rest

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2
# Errors alone: no notices, no progress. Modules are compiled when they are first imported, not 20,000 of them here.
PIP := $(PY) -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt
# make env LOCKED=1: what is installed is held to the SHA-256 in locks/, and nothing else is taken.
HASHED := $(PIP) --no-deps --require-hashes
# A file's tests stay in one process: what a fixture trains or lowers for them is made once. Slow files go first.
PYTEST := $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# What looks at no computed number, and imports nothing that computes one (tests/test_ways.py holds it to that).
EXACT := $(patsubst %,tests/test_%.py,checksums cli entry file_modes files floors lock locks nobody patterns processes \
    progress reading redact share sink speed_runs ways words) tests/training/test_torchrun.py
# Where another processor's rounding could show.
ARITHMETIC := tests/kernels tests/sparsity tests/models tests/optim $(filter-out $(EXACT),$(wildcard tests/test_*.py)) \
    tests/training tests/interop tests/finetuning $(patsubst %,--ignore=%,$(filter tests/training/%,$(EXACT)))
# What is imported is compiled once, whatever the shell says: every process of the tests would do it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-avx2 test-plain check locks docs env env-test env-csx test-csx test-aarch64 test-gpu test-ray faults bench clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: env ## environment + main job; DEMO="--pubmed 2" takes real baseline files, DEMO="--xml DIR" your own
	$(PY) scripts/demo.py $(DEMO)

test: env-test ## all tests of the default environment
	$(PYTEST) $(TESTS)

test-avx2: env-test ## the tests of arithmetic as an AVX2 processor would run them
	@if $(PY) -c 'import sys; from modelzoo.kernels import processor as p; sys.exit(p.native_class() not in p.X86[1:])'; \
	then MEDISWIFT_PROCESSOR=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	    $(PYTEST) $(ARITHMETIC); \
	else echo "test-avx2  passed over: this processor has nothing beyond AVX2 to leave out"; fi

test-plain: env-test ## the same without a compiler and without vector units
	MEDISWIFT_KERNELS=torch MEDISWIFT_PROCESSOR=plain ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default \
	    $(PYTEST) $(ARITHMETIC)

check: env-test ## lint, format and types
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m basedpyright

locks: env ## locks/*.txt anew from the pins (needs uv: pip install uv)
	$(PY) scripts/lock.py

docs: env ## docs/reference.md anew from the schema
	$(PY) scripts/reference.py

env: $(VENV)/.made ## the default environment in .venv (pinned by constraints.txt; LOCKED=1: verified by SHA-256)

$(VENV)/.made: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.11"; exit 2; }
	@echo "env        $(VENV): torch and what the trainer imports (one to three minutes, 1.5 GB, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(if $(LOCKED),$(HASHED) -r locks/torch-cpu.txt -r locks/default.txt,$(PIP) torch setuptools)
	@$(PIP) $(if $(LOCKED),--no-deps )--no-build-isolation --editable .
	@touch $@

env-test: $(VENV)/.tests

$(VENV)/.tests: $(VENV)/.made
	@echo "env        $(VENV): what the tests compare with and run on (half a minute, once)"
	@$(if $(LOCKED),$(HASHED) -r locks/test.txt && $(HASHED) --no-build-isolation -r locks/test-sources.txt, \
	    $(PIP) seqeval)  # has no wheel: built apart, with what its own build asks for
	@$(PIP) $(if $(LOCKED),--no-deps )--no-build-isolation --editable '.[test]'
	@touch $@

env-csx: ## the second environment in .venv-csx: cerebras_pytorch 2.10.0 with torch 2.4.0 (3 minutes, 6 GB)
	@PYTHON=$(PYTHON) LOCKED=$(LOCKED) scripts/env-csx.sh .venv-csx

test-csx: env-csx ## the tests of the second environment
	PATH="$(CURDIR)/.venv-csx/bin:$$PATH" PYTHONPATH="$(CURDIR)" \
	    .venv-csx/bin/python -m pytest -n $(JOBS) --dist loadfile tests/csx

test-aarch64: env-test ## the C++ kernels compiled for AArch64 and held to float64, under an emulator on other processors
	@test "$$(uname -m)" = aarch64 || { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null || \
	    { echo "error: needs a cross compiler and an emulator; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 2; }
	$(PY) -m pytest tests/kernels/aarch64/check_kernels.py

test-gpu: env-test ## what only a GPU can show: training, kernels, memory and checkpoints on it (two minutes)
	$(PY) -m pytest $(or $(TESTS),tests/gpu) --durations=15

test-ray: env-test ## `--engine ray` on a cluster of two nodes of this machine, with Ray installed (70 MB)
	@$(PIP) --no-build-isolation --editable '.[ray]'
	$(PY) -m pytest -k ray tests/data_preprocessing/jobs/test_ray.py tests/study

faults: env-test ## inputs damaged, operations failed, commands killed, by the thousand; N=10000 for more (docs/reliability.md)
	$(PY) -m tests.faults.run -n $(or $(N),2000) $(FAULTS)

bench: env ## training step against Hugging Face, side by side
	@$(PIP) --no-build-isolation --editable '.[bench]'
	$(PY) benchmarks/train_step.py

clean: ## remove environments and the demo's output
	rm -rf $(VENV) .venv-csx demo build *.egg-info
