# Everything that a developer or an operator does with a checkout. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# What the server and the commands need, and what a developer needs.
RUNTIME := $(VENV)/.runtime
INSTALLED := $(VENV)/.installed
# A process for each core; a test goes to whichever has nothing left to do.
PARALLEL := --numprocesses auto --dist worksteal

.PHONY: help run demo quick test lint soak simulate differential bench docs release clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo
	@echo 'ARGS="..." adds arguments: make run ARGS="--listen 4731 --store sqlite:other.db", make quick ARGS="-k lane", make test ARGS=tests/client'
	@echo 'run and demo install only the runtime into .venv; all other targets install the extra [dev] (370 MB).'

run: $(RUNTIME) ## the job server in the foreground, on port 4730 of loopback, jobs in ./gearman.db
	$(BIN)/twistd --nodaemon gearman $(ARGS)

demo: $(RUNTIME) ## server, worker and client for one job
	$(BIN)/python docs/examples/demo.py

quick: $(INSTALLED) ## tests without sockets, processes and databases (the files that tests/kit/quick.py finds); 40 s
	$(BIN)/python -m pytest --quick $(PARALLEL) $(ARGS)

test: $(INSTALLED) ## the whole test suite; 5 minutes on two quiet cores
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

bench: $(INSTALLED) ## measure the server beside gearmand; ARGS="--rounds 1 sync busy" for parts, ARGS=list for all
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(INSTALLED) ## the documentation as HTML, in build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs -d build/docs-read

release: $(INSTALLED) ## build sdist and wheel into dist/, and try the wheel in a new venv
	rm -rf dist build/release
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	build/release/bin/pip check
	cd build && release/bin/gearman --version && release/bin/gearmand --version
	cd build && release/bin/twistd --help | grep -E '^ +gearman(-worker)? '

clean: ## remove what was made
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/pip
	@echo 'Installing gearman_twisted and the packages that it needs into $(VENV); this happens once.'
	$(PIP) --editable .
	@touch $@

$(INSTALLED): pyproject.toml | $(BIN)/pip
	@echo 'Installing gearman_twisted with tools, test suites and drivers into $(VENV), 370 MB; this happens once.'
	$(PIP) --editable '.[dev]'
	@touch $(RUNTIME) $@
