# Everything that a developer or an operator does with a checkout. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process for each core; a test goes to whichever has nothing left to do.
PARALLEL := --numprocesses auto --dist worksteal

.PHONY: help run demo test lint soak simulate differential bench docs clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(INSTALLED) ## the job server in the foreground, on port 4730 of loopback, jobs in ./gearman.db
	$(BIN)/twistd --nodaemon --pidfile= gearman $(ARGS)

demo: $(INSTALLED) ## server, worker and client for one job
	$(BIN)/python docs/examples/demo.py

test: $(INSTALLED) ## the whole test suite
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(INSTALLED) ## longer campaigns: crash loops and many random scripts
	$(BIN)/python -m pytest -m soak --timeout 900 $(PARALLEL) $(ARGS)

simulate: $(INSTALLED) ## a million steps of the simulation; SEED=… STEPS=… for others
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS))

differential: $(INSTALLED) ## 3,000 new random scripts played to gearmand and to ours
	FRESH_SCRIPTS=1 $(BIN)/python -m pytest -m "" --timeout 900 tests/differential $(ARGS)

bench: $(INSTALLED) ## measures the server beside gearmand; ARGS="--rounds 1 sync busy" for parts, ARGS=list for all
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(INSTALLED) ## the documentation as HTML, in build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs -d build/docs-read

clean: ## removes what was made
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
