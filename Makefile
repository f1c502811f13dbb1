# `make` prints what there is. `make demo` and `make test` set up what they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
ENVIRONMENT := .venv
PYTHON_IN := $(ENVIRONMENT)/bin/python
INSTALLED := $(ENVIRONMENT)/installed

# A virtual environment that happens to be active must not leak in.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

$(INSTALLED): pyproject.toml constraints.txt scripts/setup_environment.sh
	@scripts/setup_environment.sh

.PHONY: help
help: ## Print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(INSTALLED) ## Create .venv and install everything into it

.PHONY: demo
demo: $(INSTALLED) ## Profile this machine, plan, and train a real model for a few steps
	@$(ENVIRONMENT)/bin/elite demo

.PHONY: up
up: $(INSTALLED) ## Start all services on this machine; Ctrl-C stops them
	@$(ENVIRONMENT)/bin/elite up

.PHONY: test
test: $(INSTALLED) ## Run every test that needs no system package
	@OMP_NUM_THREADS=1 $(PYTHON_IN) -m pytest --numprocesses $$(($$(nproc) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/system

.PHONY: fuzz
fuzz: $(INSTALLED) ## Send 10 000 random and mutated requests to every method; `make test` sends 320
	@OMP_NUM_THREADS=1 ELITE_FUZZ_CASES=10000 $(PYTHON_IN) -m pytest tests/integration/common/test_fuzz.py --timeout 1200

.PHONY: test-system
test-system: $(INSTALLED) ## Run the tests that need Docker, Prometheus or other programs; what is missing is skipped
	@OMP_NUM_THREADS=1 $(PYTHON_IN) -m pytest tests/system

.PHONY: lint
lint: $(INSTALLED) ## Check style, types, imports, protos and the generated code
	@$(ENVIRONMENT)/bin/ruff check .
	@$(ENVIRONMENT)/bin/ruff format --check .
	@$(ENVIRONMENT)/bin/mypy
	@$(ENVIRONMENT)/bin/lint-imports --no-logo
	@$(ENVIRONMENT)/bin/buf lint protos
	@$(ENVIRONMENT)/bin/shellcheck scripts/*.sh examples/*.sh examples/go/*.sh .ci/run
	@$(PYTHON_IN) scripts/generate_protos.py --check

.PHONY: format
format: $(INSTALLED) ## Format the code
	@$(ENVIRONMENT)/bin/ruff check --fix .
	@$(ENVIRONMENT)/bin/ruff format .

.PHONY: proto
proto: $(INSTALLED) ## Generate Python from the protos
	@$(PYTHON_IN) scripts/generate_protos.py

.PHONY: bench-planner
bench-planner: $(INSTALLED) ## Measure Plan beside an empty call, alone and under load; writes bench/results/planner.json
	@$(PYTHON_IN) -m bench.planner

.PHONY: bench-speed
bench-speed: $(INSTALLED) ## Measure streaming beside stock training, 2K to 32K tokens; writes bench/results/speed.json
	@$(PYTHON_IN) -m bench.speed

.PHONY: images
images: ## Build the images of all services with Docker
	@for target in profiler planner trainer-api trainer-worker; do \
	    docker build $(DOCKER_BUILD_OPTIONS) -f deploy/docker/Dockerfile --target $$target -t elite/$$target:0.1.0 . || exit; \
	done

.PHONY: images-cuda
images-cuda: ## Build profiler and worker for NVIDIA cards: the tag ends in -cuda
	@for target in profiler trainer-worker; do \
	    docker build $(DOCKER_BUILD_OPTIONS) --build-arg TORCH=cuda -f deploy/docker/Dockerfile --target $$target \
	        -t elite/$$target:0.1.0-cuda . || exit; \
	done

COMPOSE := docker compose -f deploy/compose/compose.yaml
.PHONY: compose-up
compose-up: images ## Start everything in containers; ELITE_DATA and ELITE_MODELS name the folders runs may read
	@scripts/compose_secrets.sh
	@$(COMPOSE) --profile monitoring --profile alerts --profile grafana up -d --wait

.PHONY: compose-down
compose-down: ## Stop the containers; runs and records are kept
	@$(COMPOSE) --profile monitoring --profile alerts --profile grafana down

.PHONY: docs
docs: $(INSTALLED) ## Build the documentation as a site in .elite/site
	@scripts/docs.sh

.PHONY: audit
audit: $(INSTALLED) ## List what we depend on (dist/sbom.json) and look for known vulnerabilities; needs the internet
	@scripts/audit.sh

.PHONY: clean
clean: ## Remove the environment and everything runs have left in .elite
	@rm -rf $(ENVIRONMENT) .elite
