# make demo   set up, then the main job end to end
# make test   set up, then all tests that run anywhere
# make check  ruff and mypy --strict

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_QUIET ?= --quiet
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check format slow browser docs clean help

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.ready-all
	$(BIN)/rag-fti demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest

slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow --timeout=3600

browser: $(VENV)/.ready-browser
	$(BIN)/python -m pytest -m browser

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.ready-dev
	$(BIN)/python tools/write_reference.py

clean:
	rm -rf $(VENV)

# Each stamp appears only after its installation finished, so a killed set-up starts again.
$(VENV)/.torch: tools/install_torch.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Set PYTHON=…"; exit 1; }
	@echo "Setting up $(VENV): PyTorch first (CPU build where there is no GPU)…"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install_torch.py
	@touch $@

$(VENV)/.ready-%: $(VENV)/.torch pyproject.toml
	@echo "Installing rag-fti[$*] and what it needs; the first time takes a few minutes…"
	$(BIN)/python -m pip install $(PIP_QUIET) --editable '.[$*]'
	@touch $@
