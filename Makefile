# Each command does its own set-up; a second call starts in seconds. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif
READY := .venv/.ready

.PHONY: help setup run test lab docs bench execute
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything pinned, and .venv/bin/lmcourse in it

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lmcourse needs Python 3.11 or newer; this is $$($(PYTHON) --version). Name another one: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python's venv module is missing: on Debian, apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

run: $(READY)  ## climb the perplexity ladder on the embedded corpus, in under three minutes
	$(BIN)/lmcourse ladder

test: $(READY)  ## run every test that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lab: $(READY)  ## open JupyterLab at the list of lessons
	cd nbs && JUPYTER_CONFIG_PATH=../.jupyter ../$(BIN)/jupyter lab index.ipynb

docs: $(READY)  ## build the site, to be read with no network, under docs/_build/html
	$(BIN)/python docs/build.py

bench: $(READY)  ## measure our speed against the usual way, side by side, in one run
	$(BIN)/lmcourse bench

execute: $(READY)  ## run notebooks as git wants them: make execute NB=nbs/X.ipynb [DATA=1, with LMCOURSE_DATA kept]
	@test -n "$(NB)" || { echo "name the notebook: make execute NB=nbs/05_tokens.ipynb"; exit 1; }
	$(BIN)/python docs/execute.py $(if $(DATA),--data) $(NB)
	$(BIN)/nbdev-clean
