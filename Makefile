# Every target sets up what it needs. On a fresh machine with Python 3.11, `make demo` or `make test` is the first command.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup check check-format check-lint check-types check-imports test e2e e2e-compose demo train export \
        serve load bench ci python-venv-package

# The build of torch (CPU, CUDA, a mirror) is yours to choose: `make setup TORCH='torch==2.14.1'`. pip's own settings
# (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) say where it comes from.
TORCH ?= torch==2.13.0
VENV ?= .venv
PYTHONS ?= python3 python3.13 python3.12 python3.11
# DATA: a folder in the place of the small simulated world (demo). ARGS: passed on to the command of the target.
DATA ?=
ARGS ?=
# ONNX Runtime reports home unless told not to before it is loaded.
export ORT_DISABLE_TELEMETRY = 1
# The small world, the run and the bundle that train, export, serve and load share.
WORLD ?= artifacts/data/demo
RUN ?= artifacts/runs/demo
RECIPE ?= daian_demo
BUNDLES ?= artifacts/bundles
# The load test: arrivals a second, how long; of serve and load: which port on this machine.
RATE ?= 50
LOAD_TIME ?= 30s
PORT ?= $(or $(DAIAN_PORT),8000)

# One stamp for each (torch, dependencies): a second run is instant, a changed pyproject.toml installs again,
# changed tool settings below the first [tool] table do not.
READY := $(VENV)/.ready-$(shell (echo '$(TORCH)'; sed '/^\[tool/,$$d' pyproject.toml) | cksum | cut -d' ' -f1)
BIN := $(VENV)/bin

help:  ## this list
	@echo "daian: ranks the page below a clicked item. Each target installs what it needs first."
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1: \2/p' Makefile

setup: $(READY)  ## the virtual environment .venv with everything (TORCH='torch==2.14.1' chooses another torch)

$(READY): | $(BIN)/pip
	@echo "Installing daian and its dependencies into $(VENV) ($(TORCH)); the first time takes a few minutes."
	@rm -f $(VENV)/.ready-*
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" --editable ".[dev]"
	@touch $@

# Debian keeps Python's venv in a package of its own.
$(BIN)/pip:
	@python=; for name in $(PYTHONS); do \
	   if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; done; \
	 if [ -z "$$python" ] || ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	   $(MAKE) --no-print-directory python-venv-package && python=$${python:-python3} || exit 3; fi; \
	 $$python -m venv --clear $(VENV)

python-venv-package:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   echo "Python 3.11 with venv is missing here; installing Debian's packages python3 and python3-venv (apt-get)."; \
	   apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null; \
	 else \
	   echo "Python 3.11 with venv is missing here. Please run this once, then the same make again:"; \
	   echo "  sudo apt-get install -y python3 python3-venv"; exit 3; fi

check: $(READY)  ## format, lint, types, import rules, Dockerfiles (under a minute)
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target check-format check-lint check-types check-imports check-dockerfiles

check-format: $(READY)
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check --output-format=concise .; echo "run: $(BIN)/ruff format ."; exit 1; }

check-lint: $(READY)
	@$(BIN)/ruff check --quiet .

check-types: $(READY)
	@$(BIN)/mypy

check-imports: $(READY)
	@found=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$found"; exit 1; }

test: $(READY)  ## every test, end to end included (ARGS='-k history' to choose)
	@$(BIN)/python -m pytest $(ARGS)

e2e: $(READY)  ## the end-to-end tests alone: real store, real server, real processes
	@$(BIN)/python -m pytest -m e2e $(ARGS)

e2e-compose: $(READY)  ## docker-compose up to a ranked answer, Redis killed and back, and down again (needs Docker)
	@$(BIN)/python deploy/compose_check.py $(ARGS)

demo: $(READY)  ## train a DAIAN on a small world, export, serve, rank, explain (DATA=folder for your own)
	@$(BIN)/daian demo $(if $(DATA),--data $(DATA)) $(ARGS)

train: $(READY) $(WORLD)/dataset.json  ## train RECIPE (daian_demo) on WORLD into RUN
	@$(BIN)/daian train $(RECIPE) --data $(WORLD) --out $(RUN) $(ARGS)

export: $(READY)  ## RUN becomes a bundle in BUNDLES; trains first when there is no run
	@test -e $(RUN)/weights.pt || $(MAKE) --no-print-directory train ARGS=
	@$(BIN)/daian export $(RUN) --data $(WORLD) --bundles $(BUNDLES) $(ARGS)

# A recipe that is none is told before a world is simulated for it.
$(WORLD)/dataset.json: | $(if $(wildcard $(WORLD)/dataset.json),,known-recipe)
	@$(BIN)/daian data simulate --out $(WORLD)

.PHONY: known-recipe
known-recipe: $(READY)
	@$(BIN)/python -c $$'import sys\nfrom training.recipes import recipe\ntry: recipe(sys.argv[1])\nexcept ValueError as error: sys.exit(f"daian: {error}")' '$(RECIPE)'

$(BUNDLES)/current:
	@$(MAKE) --no-print-directory export ARGS=

# What is served: BUNDLES; where nobody named it and it is not there, the newest that the demo left.
DEMO_BUNDLES = $(patsubst %/current,%,$(shell ls -t artifacts/demo/bundles-*/current 2>/dev/null | head -n 1))
IS_DEMO = $(if $(wildcard $(BUNDLES)/current),,$(if $(filter file,$(origin BUNDLES)),$(DEMO_BUNDLES)))
SERVED = $(or $(IS_DEMO),$(BUNDLES))

serve: $(READY) | $(SERVED)/current  ## serve BUNDLES, or what the demo made, on 127.0.0.1:8000 (PORT=9000: there) with an embedded Valkey; makes a bundle when there is none
	@echo "bundles: $(SERVED)$(if $(IS_DEMO), (the demo made them; with its users in the store: make demo ARGS=--serve))"
	@$(if $(filter file,$(origin PORT)),,DAIAN_PORT=$(PORT)) $(BIN)/daian serve $(SERVED) $(ARGS)

load: $(READY) | $(SERVED)/current  ## RATE ranks and clicks a second for LOAD_TIME at PORT; starts the service when none answers
	@mkdir -p artifacts
	@$(BIN)/python deploy/load.py --bundles $(SERVED) --port $(PORT) --rate $(RATE) --run-time $(LOAD_TIME) $(ARGS)

bench: $(READY)  ## speed, by part and beside what is usual, into docs/performance.md (hours; ARGS='--parts graphs')
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: soak
soak: $(READY)  ## the goals at full length, hours: a million requests, a million mutated ones, 1,000 swaps (docs/reliability.md)
	@DAIAN_TEST_SWAPS=1000 $(BIN)/python -m pytest tests/chaos/test_swaps.py --timeout 3600
	@$(BIN)/python -m benchmarks.goals --share soak $(ARGS)

.PHONY: chaos
chaos: $(READY)  ## the goals of docs/reliability.md, CI's share: overload, faults, kills, slow sockets (ARGS='--only G1,G4')
	@$(BIN)/python -m benchmarks.goals --share ci $(ARGS)

ci: check test  ## what CI runs: check, test and a short demo
	@$(MAKE) --no-print-directory demo ARGS="--short $(ARGS)"

# What ships: exact versions and hashes, at least a week old, so that a stolen account's release is found before it is ours.
SUPPLY := artifacts/supply
COOL_DOWN ?= 7 days
PINNED = $(SUPPLY)/tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
         --exclude-newer '$(COOL_DOWN)' --no-annotate --custom-compile-command 'make lock' --upgrade

$(SUPPLY)/tools/.ready: pyproject.toml | $(BIN)/pip
	@$(BIN)/python -m venv $(SUPPLY)/tools
	@$(SUPPLY)/tools/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8" "cyclonedx-bom>=7"
	@touch $@

.PHONY: lock sbom check-dockerfiles
lock: $(SUPPLY)/tools/.ready  ## pin anew what the images install: deploy/*.lock (serving, build, trainer, load)
	@$(PINNED) --output-file deploy/serving.lock pyproject.toml
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
	  | $(PINNED) --output-file deploy/build.lock -
	@echo '$(TORCH)' | $(PINNED) --constraint deploy/serving.lock --constraint deploy/build.lock --extra training --extra export \
	  --output-file deploy/trainer.lock pyproject.toml -
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['load'], sep='\n')" \
	  | $(PINNED) --constraint deploy/serving.lock --output-file deploy/load.lock -

sbom: $(READY) $(SUPPLY)/tools/.ready  ## what ships, as CycloneDX, and its licences, checked against the list of allowed ones
	@$(SUPPLY)/tools/bin/cyclonedx-py requirements deploy/serving.lock --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --output-file $(SUPPLY)/sbom.cdx.json
	@$(BIN)/python deploy/licences.py deploy/serving.lock > $(SUPPLY)/licences.md
	@echo "$(SUPPLY)/sbom.cdx.json, $(SUPPLY)/licences.md"

check-dockerfiles: $(READY)
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint service/Dockerfile deploy/*.Dockerfile; \
	 else echo "NOT CHECKED: hadolint has no wheel for this machine, so nobody looked at the Dockerfiles"; fi

.PHONY: peers
peers: $(READY)  ## our DIN, DeepFM and DIEN beside those of two public libraries (docs/peers.md)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers --torch '$(TORCH)' $(ARGS)
