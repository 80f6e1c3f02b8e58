# Needs Python 3.11 or newer, git and make. Everything is installed into .venv, at the versions of constraints.txt.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin

# Recipes have the variables of an activated shell: no telemetry, no installation at run time, one thread per process.
$(foreach variable,$(shell sed -n 's/^export //p' activate),$(eval export $(variable)))

PYTEST := $(BIN)/python -m pytest -rs --durations=10
# More workers than two cores: tests of processes wait more than they work.
WORKERS ?= 3

.PHONY: help setup shell run test slow wheels test-compose test-netns soak lint format types bench fedpg lock keys proto clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/dev ## Install into .venv (done by every other target when it is needed)

shell: .venv/dev ## Start a shell in which fedrl and flwr are found, as after `. ./activate`
	@bash --rcfile activate || true

run: .venv/dev ## Ten agents learn CartPole, three of them lie: with a filter and without, in a minute
	@$(BIN)/fedrl demo

test: .venv/dev ## Run the tests, without the slow ones
	$(PYTEST) -n $(WORKERS) -m "not (slow or compose or netns or soak)" tests

slow: .venv/dev ## Run the slow tests
	$(PYTEST) -n $(WORKERS) -m slow tests

wheels: .venv/dev ## Download what the image installs into docker/wheels, for builds without a network
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --prefer-binary --dest docker/wheels \
		-c constraints.txt -r <($(BIN)/python docker/requirements.py)

test-compose: .venv/dev ## Bring the containers up, see runs finish and a client die and come back (needs docker)
	$(PYTEST) -m "compose$(if $(CORE), and core)" tests/docker

test-netns: .venv/dev ## Four hosts as network namespaces: links cut, delayed, stalled (needs root)
	$(PYTEST) -s -m netns tests/server

soak: .venv/dev ## 200 rounds, 8 nodes, random kills, a SuperLink that restarts: memory and strays, in an hour
	$(PYTEST) -s -m soak tests/server

lint: .venv/dev ## Check rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/dev ## Mend what lint can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/dev ## Check types
	$(BIN)/mypy

bench: .venv/bench ## Measure the speed, beside Stable-Baselines3 (python -m benchmarks.NAME runs one)
	$(BIN)/python -m benchmarks

fedpg: .venv/dev ## Make the four figures of docs/fedpg_br.md anew, ten seeds each
	$(BIN)/fedrl sweep conf/fedpg_cartpole_one.toml --seeds 0:10 --out out/fedpg/one
	$(BIN)/fedrl sweep conf/fedpg_cartpole.toml --seeds 0:10 --out out/fedpg/ten
	$(BIN)/fedrl sweep conf/fedpg_cartpole_noise.toml --seeds 0:10 --grid federation.rule=fedpg,mean --out out/fedpg/noise
	$(BIN)/fedrl sweep conf/fedpg_cartpole_action.toml --seeds 0:10 --grid federation.rule=fedpg,mean --out out/fedpg/action
	draw() { \
		$(BIN)/fedrl plot out/fedpg/$$1 --x trajectories --each --mean --title "$$2" --out docs/results/fedpg_$$1.png; \
		$(BIN)/fedrl table out/fedpg/$$1 --group --reach 400 --x trajectories --out docs/results/fedpg_$$1.json; \
	}; \
	draw one "W = 1"; draw ten "W = 10, B = 0"; \
	draw noise "W = 10, B = 3: random-noise"; draw action "W = 10, B = 3: random-action"

lock: .venv/dev ## Resolve every dependency anew and write constraints.txt
	$(BIN)/python .ci/lock.py

keys: .venv/dev ## Write the configuration's keys into pyproject.toml, where Flower looks for them
	$(BIN)/python .ci/keys.py

proto: .venv/dev ## Make the gRPC stubs of proto/gossip.proto anew
	$(BIN)/python -m grpc_tools.protoc -I gossip=proto --python_out=. --pyi_out=. --grpc_python_out=. proto/gossip.proto

clean: ## Remove .venv and what tools leave behind
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps: .venv/NAME is newer than both files when the extra NAME is installed as they say.
# Constraints are given as a variable too, so that they also hold in the environment that builds us.
.venv/dev .venv/bench: .venv/%: pyproject.toml constraints.txt | .venv/python
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

# The first of these that runs (a shim may exist and not run) and is new enough; PYTHON=... chooses another.
.venv/python:
	@for python in $${PYTHON:-python3.11 python3.12 python3.13 python3}; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "creating .venv with $$("$$python" --version)"; \
			"$$python" -m venv .venv && touch $@ && exit 0; \
			echo "fedrl needs the venv module of $$python (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; \
		fi; \
	done; \
	echo "fedrl needs Python 3.11 or newer; none was found as $${PYTHON:-python3.11, python3.12, python3.13 or python3}." >&2; \
	exit 1
