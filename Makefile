# make demo   installs, renders micrographs, trains, scores, and writes a report to open
# make ask IMAGE=wafer.tif   asks the student of this repository about a micrograph
# make test   installs what the tests need, and runs them
# make lint   ruff
#
# PYTHON=python3.12 chooses the interpreter (3.11 or newer).
# TORCH="torch==2.13.0+cpu" chooses the build of PyTorch.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Linux without a GPU gets the CPU build, a tenth of the size: from the configured package index if
# it has one, else from PyTorch's own.
ifeq ($(shell uname -s)$(shell command -v nvidia-smi),Linux)
TORCH ?= torch==2.13.0+cpu
INSTALL_TORCH = $(PIP) "$(TORCH)" 2>/dev/null || \
	$(PIP) "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu || $(PIP) torch
else
TORCH ?= torch
INSTALL_TORCH = $(PIP) "$(TORCH)"
endif

IMAGE ?= docs/example.png

.PHONY: demo ask test lint clean

demo: $(VENV)/.demo
	$(BIN)/mvaema demo

ask: $(VENV)/.demo
	HF_HUB_OFFLINE=1 $(BIN)/mvaema ask "$(IMAGE)"

# tests/conftest.py gives each worker one thread.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch ..."
	$(INSTALL_TORCH)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "Installing MVaEMa ..."
	$(PIP) --editable ".[eval,lite,train]"
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	@echo "Installing MVaEMa and what its tests need ..."
	$(PIP) --editable ".[test]"
	@echo "Fetching transformers' own tests ..."
	$(BIN)/python tests/support/transformers_tests.py $(VENV)/transformers-tests
	touch $@ $(VENV)/.demo
