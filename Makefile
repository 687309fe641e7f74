# post-explorer: everything a checkout can do, one verb each. `make` alone prints this list.
# Nothing is installed outside the checkout: .venv/ holds the packages, .local/ the data.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
EXPLORER := $(PYTHON) -m pipeline.cli
DURATION ?=
PYTEST_ARGS ?=
# Most tests wait for processes, so there are more workers than cores; each has a broker of its own (0.4 GB).
WORKERS ?= 3

.PHONY: help setup setup-dev demo live test check format docs validate faults bench clean clean-all

help: ## this list
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## the whole pipeline on simulated traffic; stops by itself after DURATION=seconds, else by Ctrl-C
	@$(EXPLORER) up --demo $(if $(DURATION),--duration $(DURATION))

live: setup ## the same against the public Jetstream, until Ctrl-C (or DURATION=seconds)
	@$(EXPLORER) up --live $(if $(DURATION),--duration $(DURATION))

test: setup-dev ## every test, against real processes (PYTEST_ARGS='-k writer' for some; WORKERS=0: one after another)
	@$(PYTHON) -m pipeline.prerequisites --install
	@$(PYTHON) -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 $(PYTEST_ARGS)

check: setup-dev ## formatting, lint, types, import rules, documents that repeat the code
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@$(VENV)/bin/lint-imports
	@$(PYTHON) -m pipeline.docs_check

format: setup-dev ## rewrite the sources as `make check` wants them
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

docs: setup-dev ## rewrite the generated pages under docs/reference
	@$(PYTHON) -m pipeline.docs_check --write

validate: setup ## judge a day, week or month of data, made first where none is captured (PHASE=1, 2, 3; EVENTS_PER_DAY=n)
	@$(EXPLORER) validate --phase $(or $(PHASE),1) $(if $(EVENTS_PER_DAY),--simulated --events-per-day $(EVENTS_PER_DAY))

faults: setup ## strike a pipeline of its own with every fault, prove nothing is lost (ROUNDS=n, DURATION=seconds)
	@$(EXPLORER) faults $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(DURATION),--duration $(DURATION))

bench: setup-dev ## the measurements of benchmarks/, each printed with its inputs
	@$(EXPLORER) bench

setup: $(VENV)/.ready ## the run-time packages (the other targets call it)

setup-dev: $(VENV)/.ready-dev ## the packages of tests and checks (the other targets call it)

clean: ## remove the demo's data and all caches (keeps .venv, fetched jars and what `make live` captured)
	@rm -rf .local/demo .local/ci .local/faults .local/validate .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-all: clean ## also remove .venv and everything under .local, captured data included
	@rm -rf $(VENV) .local

# The first Python >= 3.11 on the path that really starts and can make an environment (version managers put names
# on the path that only print an error, and Debian ships a Python without venv).
define make_venv
	if [ ! -x $(PYTHON) ] || ! $(PYTHON) -c '' 2>/dev/null; then \
	  found=; \
	  for candidate in $(BASE_PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: no Python 3.11 or newer with venv was found on the path." >&2; \
	    echo "  Debian/Ubuntu: sudo apt-get install python3 python3-venv    macOS: brew install python@3.13" >&2; \
	    echo "  or name one:   make BASE_PYTHON=/path/to/python3.13 ..." >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
endef

define no_packages
	echo "make: the packages could not be installed. This needs the Python package index once: check the network (proxy:" >&2; \
	echo "  HTTPS_PROXY, a mirror: PIP_INDEX_URL, own certificates: PIP_CERT), then run the same command again." >&2; \
	exit 1
endef

PIP := $(PYTHON) -m pip --disable-pip-version-check install --quiet
BASE_PYTHON ?=

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(make_venv)
	@echo "installing the pinned packages (once; about a minute)"
	@$(PIP) --require-hashes -r requirements.lock || { $(no_packages); }
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: requirements-dev.lock requirements.lock pyproject.toml
	@$(make_venv)
	@echo "installing the pinned packages of tests and checks (once; about a minute)"
	@$(PIP) --require-hashes -r requirements-dev.lock || { $(no_packages); }
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.ready
