# make demo   installs, renders micrographs, trains, scores, and writes a report to open
# make ask IMAGE=wafer.tif   asks the student of this repository about a micrograph
# make test   installs what the tests need, and runs them
# make lint   ruff
# make baselines   an environment for `python -m baselines`, the paper's comparisons: 0.1 GB more
#
# PYTHON=python3.12 chooses the interpreter (3.11 or newer).
# TORCH="torch==2.13.0+cpu" chooses the build of PyTorch.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PURELIB := import sysconfig; print(sysconfig.get_path('purelib'))

# Linux without a GPU gets the CPU build, a tenth of the size: from the configured package index if
# it has one, else from PyTorch's own.
ifeq ($(shell uname -s)$(shell command -v nvidia-smi),Linux)
TORCH ?= torch==2.13.0+cpu
TORCHVISION ?= torchvision==0.28.0
INSTALL_TORCH = $(PIP) "$(TORCH)" 2>/dev/null || \
	$(PIP) "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu || $(PIP) torch
else
TORCH ?= torch
TORCHVISION ?= torchvision
INSTALL_TORCH = $(PIP) "$(TORCH)"
endif

IMAGE ?= docs/example.png

.PHONY: demo ask test lint baselines clean

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

baselines: $(VENV)/.baselines
	@echo "source $(VENV)/baselines/bin/activate; python -m baselines list"

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

# On top of the other environment and never inside it: with torchvision, transformers takes other
# image processors. It is named beside the torch that is there; left to itself, pip would take the
# newest, and with it another torch.
$(VENV)/.baselines: $(VENV)/.demo pyproject.toml
	@echo "Installing what baselines/ needs ..."
	$(BIN)/python -m venv $(VENV)/baselines
	$(BIN)/python -c "$(PURELIB)" > "$$($(VENV)/baselines/bin/python -c "$(PURELIB)")/below.pth"
	$(subst $(BIN),$(VENV)/baselines/bin,$(PIP)) "$(TORCHVISION)" \
		"torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)')" --editable ".[baselines]"
	touch $@
