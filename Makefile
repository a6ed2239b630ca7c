# Everything a developer does here, by name: `make help`. CI runs the same targets.
PYTHON ?= python3
RUN := .venv/bin/python -m
SLOW_LANES := faults or browser or postgres or k8s or rgw or nightly
# Run whole by CI; of the other slow lanes it runs the representatives.
CI_LANES := faults or postgres

# Where this is set, every process compiles vLLM and torch anew: an engine starts in a minute and a half, not half a one.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup system demo dev pictures test test-rest test-fast test-engine test-store test-rgw test-faults test-browser \
	test-postgres test-k8s test-nightly lint format types lock licenses clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## Make .venv with everything locked (a few minutes; a moment when it is up to date)
	@$(PYTHON) scripts/setup_env.py

system: ## Install the Debian packages that the browser, postgres and decoding tests need, where that is possible
	@$(PYTHON) scripts/setup_system.py browser postgres

demo: setup ## Caption the sample shards from end to end, and print what came out
	@$(RUN) scripts.demo

dev: setup ## Dagster's UI and daemon over the same data, on port 3000
	@$(RUN) scripts.dev

pictures: demo system ## Take the README's pictures of the UI and a gallery anew
	@$(RUN) scripts.pictures

# One process, so that the vLLM engine is built once. Named by what is left out: a test without a lane runs here too.
test: setup ## Run the fast, engine and store lanes and one test of each slow lane
	@$(PYTHON) scripts/setup_system.py browser postgres || true # a test says so itself, if its program is missing
	$(RUN) pytest -m "not ($(SLOW_LANES)) or representative"

test-rest: setup ## Run the rest of the faults and postgres lanes, which CI runs after `make test`
	$(RUN) pytest -m "($(CI_LANES)) and not representative and not nightly"

test-fast: setup ## Run the tests that need no engine, server or browser
	$(RUN) pytest -m fast

test-engine: ## Run the tests that build a vLLM engine
test-store: ## Run the tests that talk to an S3 server on this machine
test-faults: ## Run the tests that kill, corrupt and starve
test-browser: system ## Run the tests that drive the web UI in a browser
test-postgres: system ## Run the tests that run Dagster on a PostgreSQL server of this machine
test-nightly: ## Run the longest repetitions of the tests of other lanes
test-engine test-store test-faults test-browser test-postgres test-nightly: setup
	$(RUN) pytest -m $(@:test-%=%)

test-k8s: setup ## Run the tests that render or run pods, on a cluster of this machine: KUBECONFIG's, or one that is started
	@[ -n "$$KUBECONFIG" ] || variables=$$(../shared/k8s/cluster up) && eval "$$variables" && $(RUN) pytest -m k8s

test-rgw: setup ## Run the tests of the store, and those of its keys, against Ceph's object gateway (installs it)
	@$(PYTHON) scripts/setup_system.py rgw
	$(RUN) pytest --s3-server rgw -m "store or rgw"

lint: setup ## Check style, format and the layers' import contracts
	$(RUN) ruff check
	$(RUN) ruff format --check
	.venv/bin/lint-imports

format: setup ## Mend style and format where that can be done by machine
	$(RUN) ruff check --fix
	$(RUN) ruff format

types: setup ## Check the type hints
	$(RUN) mypy

lock: ## Resolve the dependencies anew, into requirements/
	$(PYTHON) -m scripts.lock
	@echo "Next: make setup licenses"

licenses: setup ## List the locked packages with their licences in DEPENDENCIES.md
	$(RUN) scripts.licenses

clean: ## Remove .venv and every cache; leaves the data alone
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
