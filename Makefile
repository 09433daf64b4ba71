# make run   the documented loop on the embedded model      make test   lint, types, tests
# make setup what both need; done once                      make tensorboard   the curves of all runs
PYTHON ?= python3
comma := ,
BIN := .venv/bin
INSTALLED := .venv/installed
EXTRAS := trl,dev$(if $(shell command -v nvidia-smi),$(comma)gpu)

.PHONY: setup run test tensorboard
setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' --constraint constraints.txt
	touch $@

run: setup
	$(BIN)/python -m agents.rejection_sft --cycles 10

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

tensorboard: setup
	$(BIN)/tensorboard --logdir runs
