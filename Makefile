# Goldpath. `make` shows what there is to do.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
BIN := .venv/bin
ROOMS := lineage data_contracts training evaluation serving flows
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt

# The same switches as lineage/privacy.py, for the tools that are started from here.
export DO_NOT_TRACK := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1

# An active environment of another project must not leak into this one.
unexport PYTHONPATH PYTHONHOME

# Tests never ask a hub, never touch a user's own servers or state, and leave one core to each of the two workers.
TEST_ENVIRONMENT := env -u PREFECT_API_URL -u MLFLOW_TRACKING_URI -u GOLDPATH_HOME \
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: help demo test install .venv check bench soak up clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

demo: .venv ## From raw text to champion, with a candidate stopped and one rolled back (10 minutes on slow cores)
	@$(BIN)/goldpath demo

test: .venv check ## Run every check and every test, offline (what CI runs)
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest --quiet -n 2 --dist loadfile

install: .venv ## Make the virtual environment alone

check: .venv ## Run ruff, strict mypy and the import contracts
	@echo "check: ruff" >&2
	@$(BIN)/ruff format --check --quiet . || { echo "Fix: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@echo "check: mypy --strict" >&2
	@$(BIN)/mypy
	@echo "check: import contracts" >&2
	@$(BIN)/lint-imports --no-logo

bench: .venv ## Measure the figures that Goldpath promises and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks

soak: .venv ## Kill training 200 times, damage its checkpoints, and compare the bytes of the end (half an hour)
	@$(TEST_ENVIRONMENT) $(BIN)/python tests/training/soak.py --kills 200

up: .venv ## Start the Prefect server, MLflow, a worker and the gateway on 127.0.0.1; Ctrl-C stops all
	@$(BIN)/goldpath up

clean: ## Remove the virtual environment and caches; keeps .goldpath (your runs, models and ledger)
	@rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find $(ROOMS) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment, in steps: a stamp marks a step that ended well, so an interrupted install continues, and
# only a changed pyproject.toml or constraints.txt runs a step again.
.venv: .venv/.deepspeed

.venv/.python:
	@for tool in git gcc; do command -v $$tool >/dev/null || { \
	  echo "error: $$tool is missing. Fix: install it (Debian, Ubuntu: apt install git build-essential)" >&2; exit 1; }; done
	@for python in $(PYTHON) python3.11 python3; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	    echo "install: virtual environment (1 of 4)" >&2; \
	    $$python -m venv .venv && touch $@ && exit 0; exit 1; \
	  fi; \
	done; \
	echo "error: no Python 3.11 with venv was found. Fix: apt install python3.11-venv (or pyenv install 3.11)," \
	  "or name it: make PYTHON=/path/to/python3.11" >&2; exit 1

.venv/.torch: .venv/.python constraints.txt
	@echo "install: torch (2 of 4)" >&2
	@$(PIP) pip setuptools wheel ninja
	@$(PIP) torch
	@touch $@

# Without build isolation: the pinned setuptools builds it, and an offline re-run needs no index.
.venv/.project: .venv/.torch pyproject.toml
	@echo "install: goldpath and what it needs (3 of 4; one or two minutes)" >&2
	@PYTHONWARNINGS=ignore $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# Last and without build isolation, because DeepSpeed's setup imports the torch that is installed.
.venv/.deepspeed: .venv/.project
	@echo "install: deepspeed (4 of 4)" >&2
	@$(PIP) --no-build-isolation deepspeed
	@touch $@
