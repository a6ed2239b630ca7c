# The developer's commands; `make help` lists them. CI runs the same targets.
PYTHON ?= python3
RUN := .venv/bin/python -m
PORT := 3000
SLOW_LANES := faults or browser or postgres or k8s or rgw or nightly
# Slow lanes that CI runs in full. Of the other slow lanes it runs the representatives.
CI_LANES := faults or postgres
# Coverage of the fast lane, printed at the end; tests/conftest.py leaves the other lanes out.
COVERAGE := $(if $(CI),--cov)

# If this variable is set, every process compiles vLLM and torch again: an engine starts in 90 s instead of 30 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup system demo dev docs pictures diagrams test test-rest test-fast test-engine test-store test-rgw \
	test-faults test-browser test-postgres test-k8s test-nightly lint format types lock licenses clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## Create .venv with the locked packages (takes minutes, or seconds if it is up to date)
	@$(PYTHON) scripts/setup_env.py

system: ## Install the Debian packages of the browser, postgres and decoding tests, if possible
	@$(PYTHON) scripts/setup_system.py browser postgres

demo: setup ## Caption the sample shards and print the answers
	@$(RUN) scripts.demo

dev: setup ## Run Dagster's UI and daemon over the same data, on port 3000 (make dev PORT=3005)
	@$(RUN) scripts.dev $(PORT)

docs: setup ## Build the documentation into site/ and check its links
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

pictures: demo system ## Take the pictures of the docs: Dagster's UI and a gallery
	@$(RUN) scripts.pictures

diagrams: system ## Render the diagrams of the docs from docs/diagrams/*.mmd (needs npm)
	@$(RUN) scripts.docs_diagrams

# The fast lane runs in several processes, the others in one, so that the vLLM engine is built once. Slow lanes are
# excluded by name, so that a test without a lane runs.
test: setup ## Run the fast, engine and store lanes and one test of each slow lane
	@$(PYTHON) scripts/setup_system.py browser postgres || true # a test reports a missing program itself
	@$(MAKE) --no-print-directory test-fast
	$(RUN) pytest -m "not (fast or $(SLOW_LANES)) or (representative and not fast)"

test-rest: setup ## Run the rest of the faults and postgres lanes, which CI runs after `make test`
	$(RUN) pytest -m "($(CI_LANES)) and not representative and not nightly"

test-fast: setup ## Run the tests that need no engine, server or browser
	$(RUN) pytest $(COVERAGE) -n auto --maxprocesses 4 --dist loadfile -m fast

test-engine: ## Run the tests that build a vLLM engine
test-store: ## Run the tests against an S3 server on this machine
test-faults: ## Run the tests with crashes, damage and full disks
test-browser: system ## Run the tests that drive the web UI in a browser
test-postgres: system ## Run the tests that run Dagster on a PostgreSQL server of this machine
test-nightly: system ## Run the long repetitions of tests of other lanes
test-engine test-store test-faults test-browser test-postgres test-nightly: setup
	$(RUN) pytest -m $(@:test-%=%)

test-k8s: setup ## Run the tests that render or run pods, on KUBECONFIG's cluster or a new one
	@[ -n "$$KUBECONFIG" ] || variables=$$(../shared/k8s/cluster up) && eval "$$variables" && $(RUN) pytest -m k8s

test-rgw: setup ## Install Ceph's object gateway, and run the store lane against it
	@$(PYTHON) scripts/setup_system.py rgw
	$(RUN) pytest --s3-server rgw -m "store or rgw"

lint: setup ## Check style, format and import contracts
	$(RUN) ruff check
	$(RUN) ruff format --check
	.venv/bin/lint-imports

format: setup ## Fix style and format, as far as ruff can
	$(RUN) ruff check --fix
	$(RUN) ruff format

types: setup ## Check the type hints
	$(RUN) mypy

lock: ## Resolve the dependencies into requirements/
	$(PYTHON) -m scripts.lock
	@echo "Next: make setup licenses"

licenses: setup ## List the locked packages with their licenses in DEPENDENCIES.md
	$(RUN) scripts.licenses

clean: ## Remove .venv, build outputs and caches, but no data
	rm -rf .venv build dist site .coverage *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
