# Everything a developer does here, each as one word: `make help` lists them.
# Needs python3 (3.10 or newer, with venv), git and make; the first target that needs .venv creates it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS := deploy/constraints.txt
TORCH ?= $(shell sed -n 's/^\(torch==[^;]*\).*/\1/p' $(CONSTRAINTS))
PIP := -m pip --disable-pip-version-check --quiet
DEMO := build/demo
LOCK := build/lock
MLFLOW := build/mlflow

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-deploy mutate audit check lint types trackers chaos bench lock clean python

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(INSTALLED) ## Run the main job: train on real digits on two ranks, results in build/demo
	@rm -rf $(DEMO)
	$(BIN)/rankfire run examples/digits/job.yaml --set storage=$(DEMO)

test: $(INSTALLED) ## Run all tests (some of them: make test TESTS=tests/workers)
	$(BIN)/python -m pytest $(TESTS) $(COVERAGE)

test-deploy: $(INSTALLED) ## Run the job on a Ray cluster with a token and on a real Slurm, which it installs if it may
	@command -v slurmctld > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
	  && apt-get update -qq && apt-get install -y --no-install-recommends slurm-wlm munge; } \
	  || echo "no Slurm here, and none can be installed: its test will be skipped"
	$(BIN)/python $(PIP) install kubernetes-validate || echo "no kubernetes-validate here: its tests will be skipped"
	RANKFIRE_DEPLOY=1 $(BIN)/python -m pytest tests/deploy

mutate: $(INSTALLED) ## Take away each guard of the security promises, and see that a test fails; rewrites the record
	PYTHONPATH=. $(BIN)/python -m tests.security.mutate

audit: $(INSTALLED) ## Ask for known holes in what is locked; where the index can't say, that is told, not passed over
	$(BIN)/python $(PIP) install pip-audit
	$(BIN)/python deploy/audit.py $(BIN)/pip-audit

check: COVERAGE := --cov
check: lint types test ## Format, lint, types, then all tests (house rules too) with coverage

lint: $(INSTALLED) ## Formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED) ## Strict type check of workers and orchestrator
	$(BIN)/mypy

trackers: $(INSTALLED) ## Install MLflow and W&B as well, and test the loggers against the real ones
	$(BIN)/python $(PIP) install -c $(CONSTRAINTS) -e '.[mlflow,wandb]' matplotlib
	test -x $(MLFLOW)/bin/mlflow || { $(PYTHON) -m venv --clear $(MLFLOW) && $(MLFLOW)/bin/python $(PIP) install 'mlflow>=3'; }
	RANKFIRE_MLFLOW=$(CURDIR)/$(MLFLOW)/bin/mlflow $(BIN)/python -m pytest tests/orchestrator/loggers

chaos: $(INSTALLED) ## Kill ranks a hundred times, their driver twenty times, nodes for ten minutes, break networks; compare, bit by bit
	RANKFIRE_KILLS=100 RANKFIRE_FAULTS=all $(BIN)/python -m pytest tests/recovery
	RANKFIRE_FAULTS=all $(BIN)/python -m pytest tests/journeys/test_worlds_on_ray.py
	RANKFIRE_KILLS=20 $(BIN)/python -m pytest tests/journeys/test_resume_exact.py
	RANKFIRE_FAULTS=all $(BIN)/python -m pytest tests/journeys/test_partitions.py tests/journeys/test_lost_nodes.py
	RANKFIRE_SOAK=600 $(BIN)/python -m pytest tests/journeys/test_soak_on_ray.py -s

bench: $(INSTALLED) ## Run the benchmarks, each against its peer
	@set -e; for script in tests/benchmarks/[a-z]*.py; do \
	  echo "== $$script"; PYTHONPATH=. $(BIN)/python "$$script"; done

lock: python ## Resolve the dependencies anew and rewrite deploy/constraints.txt
	rm -rf $(LOCK)
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python $(PIP) install $(TORCH)
	$(LOCK)/bin/python $(PIP) install -e '.[dev,mlflow,wandb]' matplotlib
	$(LOCK)/bin/python deploy/lock.py > $(LOCK)/constraints.txt
	mv $(LOCK)/constraints.txt $(CONSTRAINTS)
	$(LOCK)/bin/python $(PIP) install uv
	grep -v '^torch==' $(CONSTRAINTS) | $(LOCK)/bin/uv pip compile - --generate-hashes --no-deps --universal \
	  --python-version 3.10 --no-header --no-annotate --quiet -o $(LOCK)/hashes
	@{ sed -n '/^[^#]/q;p' deploy/requirements.lock; cat $(LOCK)/hashes; } > $(LOCK)/requirements.lock
	mv $(LOCK)/requirements.lock deploy/requirements.lock
	$(PYTHON) deploy/sbom.py > deploy/sbom.json
	rm -rf $(LOCK)

clean: ## Remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: pip then takes the build for this machine, and nothing later asks for another.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | python
	@rm -f $@
	@echo "Installing into $(VENV): about two minutes, once."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python $(PIP) install -c $(CONSTRAINTS) $(TORCH)
	$(BIN)/python $(PIP) install -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "no '$(PYTHON)' on this machine: install Python 3.10 or newer, or name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "'$(PYTHON)' is $$($(PYTHON) -V 2>&1), Rankfire needs 3.10 or newer; name one: make PYTHON=..." >&2; exit 1; }
