# Everything that a person or CI runs. `make help` lists it. Every target sets up what it needs by itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

PYTHON ?= python3
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rewardfl
UV_VERSION := 0.13.9
UV := $(CACHE)/uv-$(UV_VERSION)/uv
VENV := .venv
BIN := $(VENV)/bin
# The environment is rebuilt when what it is made of changes, never otherwise.
STAMP := $(VENV)/.ready-$(shell cat requirements/dev.txt pyproject.toml | sha256sum | cut -c1-16)
CRD_FILES := crds/rewardfl.io_rewardfljobs.yaml charts/rewardfl/files/rewardfl.io_rewardfljobs.yaml
DOC_FILES := docs/operations.md docs/reference.md docs/moving-from-roll.md
CLUSTER ?= local
TESTS ?= tests
BASE ?=
REGISTRY ?=
IMAGES ?=
VERSION ?=
SOURCE ?=
GPU_PYTHON ?=

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.PHONY: setup
setup: $(STAMP) ## make .venv from the locked requirements

$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) not found: install Python 3.11 or newer, or say make PYTHON=..."; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $(PYTHON) is older than 3.11: say make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "setup: installing python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; }
	mkdir -p $(CACHE)
	scratch=$$(mktemp -d $(CACHE)/.uv-XXXXXX)
	trap 'rm -rf "$$scratch"' EXIT
	echo "setup: uv $(UV_VERSION)"
	$(PYTHON) -m venv "$$scratch/venv"
	"$$scratch/venv/bin/pip" install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	mkdir -p $(dir $(UV))
	mv -f "$$scratch/venv/bin/uv" $(UV)

$(STAMP): | $(UV)
	@echo "setup: $(VENV) from requirements/dev.txt (7 GB; about a minute where the packages are cached)"
	rm -f $(VENV)/.ready-*
	[ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null || $(UV) venv -q --clear --python $(PYTHON) $(VENV)
	# Compiled here, once: pods may not write to it, and where PYTHONDONTWRITEBYTECODE is set every process would compile anew.
	VIRTUAL_ENV=$(VENV) $(UV) pip sync -q --compile-bytecode --require-hashes requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install -q --no-deps -e .
	touch $@

.PHONY: demo
demo: setup ## run the main job on a local Kubernetes (BASE=local: in the images; CLUSTER=current: on the current kubectl context)
	@exec $(BIN)/python -m examples.demo --cluster $(CLUSTER) $(if $(BASE),--images $(BASE))

.PHONY: test
test: setup lint cluster-build ## lint, then every test; TESTS=path narrows them
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m pytest -n 2 $(TESTS)

.PHONY: test-fast
test-fast: setup ## only the tests that take seconds and need no cluster
	@exec $(BIN)/python -m pytest -m "not slow and not cluster" $(TESTS)

.PHONY: test-images
test-images: setup cluster-build ## build both images, look into them, run the demo in them on the local Kubernetes (root)
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m pytest tests/images tests/e2e/test_images_on_a_node.py tests/e2e/test_demo_job.py

.PHONY: test-gpu
test-gpu: $(if $(GPU_PYTHON),,setup) ## the trainer's tests on a CUDA device, with figures (GPU_PYTHON=python3: docs/gpu.md)
	@if [ -n "$(GPU_PYTHON)" ]; then exec tests/gpu/run.sh $(GPU_PYTHON); fi
	REWARDFL_TEST_DEVICE=cuda exec $(BIN)/python -m pytest tests/gpu

.PHONY: gpu-packages
gpu-packages: ## fetch what a GPU machine with torch but no network lacks, into .gpu-packages
	@$(PYTHON) -m tests.gpu.packages

.PHONY: bench-trainer
bench-trainer: setup ## measure a training step against the straightforward form; writes docs/benchmarks/ (20 minutes)
	@exec $(BIN)/python -m tests.benchmarks.trainer

.PHONY: bench-operator
bench-operator: setup cluster-build ## measure the operator with 1,000 jobs on a real control plane; writes docs/benchmarks/ (6 minutes)
	@exec $(BIN)/python -m tests.benchmarks.operator

.PHONY: bench-staging
bench-staging: setup ## measure staging against s5cmd, boto3 and cp; writes docs/benchmarks/ (5 minutes, 20 GB of disk)
	@exec $(BIN)/python -m tests.benchmarks.staging

.PHONY: lint
lint: setup ## ruff, mypy --strict, the import contracts, the generated files
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(MAKE) -s check-generated

.PHONY: format
format: setup ## let ruff format and fix
	@$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

.PHONY: generate
generate: setup ## write the CRD, the documentation's tables and the chart's schema and README
	@$(BIN)/python -m rewardfl_api.crd --write $(CRD_FILES)
	$(BIN)/python -m rewardfl_api.docs --write $(DOC_FILES)
	$(BIN)/python -m charts.generate --write

.PHONY: docs
docs: setup ## build the documentation's site into build/docs; open build/docs/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build  # with --quiet it would not count warnings
	echo "build/docs/index.html"

.PHONY: tuning-tables
tuning-tables: setup ## count the tables of docs/tuning.md anew with the estimate; five minutes
	$(BIN)/python -m rewardfl_trainer.estimate.tables --write docs/tuning.md

.PHONY: check-generated
check-generated: setup ## fail when a generated file is not current
	@$(BIN)/python -m rewardfl_api.crd --check $(CRD_FILES)
	$(BIN)/python -m rewardfl_api.docs --check $(DOC_FILES)
	$(BIN)/python -m charts.generate --check

.PHONY: lock
lock: $(UV) ## lock the dependencies again, with hashes and without addresses
	@compile="$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --upgrade"
	$$compile --custom-compile-command "make lock" --all-extras pyproject.toml -o requirements/dev.txt
	printf 'hatchling>=1.27\npip\nsetuptools\n' | $$compile --custom-compile-command "make lock" -c requirements/dev.txt - -o requirements/build.txt
	for extra in operator trainer; do
	  $$compile --custom-compile-command "make lock" --extra $$extra --extra cli -c requirements/dev.txt pyproject.toml -o requirements/$$extra.txt
	done

.PHONY: images
images: setup ## build both images with docker, podman or buildah (BASE=local: where no image registry is reached; docs/images.md)
	@exec $(BIN)/python -m docker.build --base "$(BASE)" --registry "$(REGISTRY)" --sbom dist $(IMAGES)

.PHONY: release
release: setup ## make the release VERSION=x in dist/: images, chart, bills of materials, checksums; commit and tag (docs/releasing.md)
	@exec $(BIN)/python -m release "$(VERSION)" --base "$(BASE)" --registry "$(REGISTRY)" --source "$(SOURCE)" $(IMAGES)

.PHONY: publish
publish: setup ## push the release VERSION=x from dist/ to a registry (REGISTRY=, default: what its chart says)
	@exec $(BIN)/python -m release.publish "$(VERSION)" --registry "$(REGISTRY)"

.PHONY: cluster-build
cluster-build: setup ## build or find the local Kubernetes' programs
	@$(BIN)/python -m tests.cluster build

.PHONY: cluster-up
cluster-up: setup ## start the local Kubernetes and leave it running
	@$(BIN)/python -m tests.cluster up

.PHONY: cluster-down
cluster-down: setup ## stop it
	@$(BIN)/python -m tests.cluster down

.PHONY: clean
clean: ## remove what these targets made in this folder
	rm -rf $(VENV) build dist demo-results .mypy_cache .ruff_cache .pytest_cache
