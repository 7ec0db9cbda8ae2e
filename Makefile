# The two commands of the README: `make demo` (the main job) and `make test`. Everything else serves them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Real images and weights for the tests and benchmarks that need them; everything passes without.
CEMA_DATA ?= $(abspath $(wildcard ../shared/data))
export CEMA_DATA
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test check audit ci chaos load docs fuzz format clean

help: ## this text
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## virtual environment with the full development install (idempotent)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cema needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## one cloud, two edges, drifting digits: live table, summary, HTML report
	$(BIN)/cema demo $(DEMO_ARGS)

# A file's tests stay together: they share what is slow to make. 0 = one after the other, in this process.
PYTEST_WORKERS ?= 2
test: setup ## all tests (PYTEST_WORKERS=2, PYTEST_ARGS=)
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

check: setup ## static checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python scripts/generate_docs.py --check

audit: setup ## secrets in tracked files, versions that are not the pinned ones, known vulnerabilities
	$(BIN)/python scripts/audit.py

ci: check audit test ## what CI runs

# Both names are understood; CHAOS_JSON= is a file for the figures.
CHAOS_SECONDS ?= 600
CHAOS_S ?= $(CHAOS_SECONDS)
CHAOS_SEED ?= 0
chaos: setup ## faults on a real cloud and real devices (CHAOS_S=600 CHAOS_SEED=0): five promises, proven
	PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m chaos --seconds $(CHAOS_S) --seed $(CHAOS_SEED) $(if $(CHAOS_JSON),--json $(CHAOS_JSON))

LOAD_S ?= 600
load: setup ## twice what the cloud can take, for LOAD_S=600 seconds (LOAD_JSON=file): sheds, recovers, loses nothing
	PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m load --seconds $(LOAD_S) $(if $(LOAD_JSON),--json $(LOAD_JSON))

docs: setup ## regenerate the pages made from code
	$(BIN)/python scripts/generate_docs.py

fuzz: $(VENV)/.installed-fuzz ## coverage-guided fuzzing of every decoder, FUZZ_S seconds each (60)
	$(BIN)/python fuzz/run.py --seconds $(or $(FUZZ_S),60)

$(VENV)/.installed-fuzz: $(VENV)/.installed
	$(BIN)/pip install --progress-bar off --quiet -c constraints.txt -e '.[fuzz]'
	@touch $@

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
