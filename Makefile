# `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PIP_AUDIT := 2.10.1
CYCLONEDX := 7.5.0

# Everything stays in this folder unless your own settings say otherwise.
export MPLCONFIGDIR ?= $(CURDIR)/.cache/matplotlib
export DO_NOT_TRACK ?= 1
export DVC_NO_ANALYTICS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false

.PHONY: help setup demo gallery test test-fast coverage gpu-check soak lint prose docs lock audit licences serve bench bench-data bench-serve stack stack-down deploy remote

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.stamp ## Create .venv from requirements.lock; skipped while the lock is unchanged

.venv/.stamp: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed: name one with make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -e .
	touch $@

demo: setup ## Run the whole job of params.yaml, at first on the built-in digits: data, training, samples, metrics, champion
	$(BIN)/diffusion run

# Test processes with one thread each, as many as tests/conftest.py says; a file's tests share their servers.
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: setup ## Run all tests
	$(PYTEST)

test-fast: setup ## Run the laws and the unit tests: no servers, no trainings
	$(PYTEST) -m "not (servers or stack or slow or gpu)"

coverage: setup ## Run all tests and say which lines none of them reaches
	$(PYTEST) --cov=diffusion_core --cov=flows --cov=stack --cov-report=term-missing:skip-covered

MINUTES ?= 15
SEED ?=

soak: setup ## Disturb trainings and flows at random for MINUTES=15, and compare them to the last bit (make soak SEED=1)
	$(BIN)/python -m pytest -q tests/soak/control.py
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)

gpu-check: ## Check a GPU: the same numbers as a CPU, and learning (make gpu-check GPU_PYTHON=python3)
	@$(GPU_PYTHON) -c 'import numpy, pytest, torch' \
		|| { echo "error: $(GPU_PYTHON) cannot import PyTorch, numpy and pytest: say make setup, or name an interpreter that can with make gpu-check GPU_PYTHON=..." >&2; exit 2; }
	GPU_CHECK_REQUIRED=1 $(GPU_PYTHON) -m pytest tests/gpu -q -p no:cacheprovider -rs

lint: setup prose ## Check style, types, who may import whom, and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

prose: setup ## Check the words and the length of sentences in documents and docstrings
	$(BIN)/python -m tests.prose

# Material's makers advertise their next generator at each build, unless the variable is set.
docs: setup ## Build the documentation into site/ and check its links; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# PyTorch's own CUDA packages are left out of the lock, so that each machine gets the build that fits it.
lock: setup ## Renew requirements.lock after a change of pyproject.toml (make lock UPGRADE=--upgrade for newer versions)
	cp requirements.lock .requirements.tmp
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate \
		--quiet $(UPGRADE) --output-file .requirements.tmp > /dev/null
	grep -vE '^(nvidia-|cuda-|triton)' .requirements.tmp > requirements.lock
	rm .requirements.tmp

# Both programs run in environments of their own. The list of parts needs no service, so it is written first. Where the
# service does not know a package or does not answer, --strict makes an error of what pip-audit would pass over.
audit: setup ## List all parts with their licences in sbom.json, and ask whether any has a known vulnerability
	$(BIN)/uv tool run --from cyclonedx-bom==$(CYCLONEDX) cyclonedx-py environment --pyproject pyproject.toml \
		--output-reproducible --output-file sbom.json $(BIN)/python
	$(BIN)/uv tool run pip-audit==$(PIP_AUDIT) --strict --disable-pip --no-deps --requirement requirements.lock

licences: setup ## Renew docs/licences.md
	$(BIN)/python docs/licences.py

# Without BENCH_PYTHON the peers get an environment of their own. With it nothing is installed, and the interpreter needs
# PyTorch alone; a peer that it lacks is left out. On a GPU machine say: make bench BENCH_PYTHON=python3 PARTS=training
# IMAGES=folder measures quality on its photographs.
BENCH_PYTHON ?= .bench/bin/python
PARTS ?=
OWN_BENCH := $(filter .bench/%,$(BENCH_PYTHON))

bench: $(if $(OWN_BENCH),setup $(OWN_BENCH)) ## Measure this project beside its peers (with an interpreter as it is: make bench BENCH_PYTHON=python3 PARTS=training)
	@$(BENCH_PYTHON) -c 'import torch' \
		|| { echo "error: $(BENCH_PYTHON) cannot import PyTorch: name another with make bench BENCH_PYTHON=..." >&2; exit 2; }
	$(if $(OWN_BENCH),$(BIN)/python,$(BENCH_PYTHON)) -m benchmarks.compare $(PARTS) --python $(BENCH_PYTHON) $(if $(IMAGES),--images "$(IMAGES)")

.bench/bin/python: benchmarks/requirements.txt
	test -x $@ || $(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

ARCHIVE ?=
# The library that is measured beside this project, and the Pillow of requirements.lock.
DATASETS := 5.2.0
PILLOW := $(shell sed -n 's/^pillow==\([0-9.]*\).*/\1/p' requirements.lock)

bench-data: $(if $(ARCHIVE),setup .bench-data/.stamp) ## Measure ingest and prepare beside Pillow and datasets (make bench-data ARCHIVE=pictures.zip)
	@test -n "$(ARCHIVE)" || { echo "error: ARCHIVE is not set: name a zip file of images with make bench-data ARCHIVE=..." >&2; exit 2; }
	$(BIN)/python -m benchmarks.images "$(ARCHIVE)" --datasets .bench-data/bin/python

.bench-data/.stamp: requirements.lock Makefile
	test -x .bench-data/bin/python || $(PYTHON) -m venv .bench-data
	.bench-data/bin/python -m pip install --quiet --disable-pip-version-check datasets==$(DATASETS) Pillow==$(PILLOW)
	touch $@

bench-serve: setup ## Measure the served champion beside the bare sampler, and under fifty clients
	$(BIN)/python -m benchmarks.serving

PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000

serve: setup ## Keep this machine's nightly schedule, and the pages of Prefect and MLflow (make serve MLFLOW_PORT=5001)
	$(BIN)/python -m stack.serve --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT)

PORT ?= 8001

gallery: setup ## Look at the registered versions in a browser (make gallery PORT=8001)
	$(BIN)/diffusion gallery --port $(PORT)

stack: setup ## Start a team's servers on this machine: PostgreSQL, S3, MLflow, Prefect and a worker
	$(BIN)/python -m stack up

stack-down: setup ## Stop what `make stack` has started; the data stay
	$(BIN)/python -m stack down

POOL ?= machine

deploy: setup ## Put the nightly run on the Prefect server: make deploy POOL=machine, docker or kubernetes
	$(BIN)/python -m flows.deploy $(POOL)

remote: setup ## Tell DVC of the bucket in DIFFUSION_DVC_REMOTE, where machines share outputs
	$(BIN)/python -m diffusion_core remote
