# make demo   environment, a small corpus, dense and 75 % sparse pre-training, and the comparison (ten minutes, two cores)
# make test   the tests (the ones on real data run where ../shared/data lies)
# make help   the rest

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2

.PHONY: help demo test check docs env env-csx test-csx test-aarch64 bench clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: env ## environment + main job; DEMO="--pubmed 2" takes real baseline files, DEMO="--xml DIR" your own
	$(PY) scripts/demo.py $(DEMO)

test: env ## all tests of the default environment
	$(PY) -m pytest -n $(JOBS) $(TESTS)

check: env ## lint and format
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

docs: env ## docs/reference.md anew from the schema
	$(PY) scripts/reference.py

env: $(VENV)/.made ## the default environment in .venv (torch pinned by constraints.txt)

$(VENV)/.made: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

env-csx: ## the second environment in .venv-csx: cerebras_pytorch 2.10.0 with torch 2.4.0 (3 minutes, 6 GB)
	PYTHON=$(PYTHON) scripts/env-csx.sh .venv-csx

test-csx: env-csx ## the tests of the second environment
	PATH="$(CURDIR)/.venv-csx/bin:$$PATH" PYTHONPATH="$(CURDIR)" .venv-csx/bin/python -m pytest tests/csx

test-aarch64: env ## the C++ kernels compiled for AArch64 and held to float64, under an emulator on other processors
	@test "$$(uname -m)" = aarch64 || { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null || \
	    { echo "error: needs a cross compiler and an emulator; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 2; }
	$(PY) -m pytest tests/kernels/aarch64/check_kernels.py

bench: env ## training step against Hugging Face, side by side
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(PY) benchmarks/train_step.py

clean: ## remove environments and the demo's output
	rm -rf $(VENV) .venv-csx demo build *.egg-info
