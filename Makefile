# Set-up is automatic: every target builds .venv first, and rebuilds the kernels when their sources change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt) CMakeLists.txt pyproject.toml

.PHONY: bench demo test test-slow test-data check lint types sanitize clean

demo: $(VENV)/installed
	$(BIN)/trimtab search

test: $(VENV)/installed
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

test-data: $(VENV)/installed
	$(BIN)/pytest -m data

# About half an hour for each kernel level; SECONDS_EACH=0.2 MINUTES=1 gives a first impression.
bench: $(VENV)/installed
	$(BIN)/pip install --quiet -e ".[openvino]" --no-build-isolation
	TRIMTAB=$(BIN)/trimtab docs/benchmark-tables.sh > build/benchmark-tables.md
	mv build/benchmark-tables.md docs/benchmark-tables.md

check: lint types test

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

sanitize: $(VENV)/installed
	@for compiler in g++ clang++; do \
	  if command -v $$compiler >/dev/null; then tests/sanitize.sh $(BIN)/python $$compiler || exit 1; \
	  else echo "$$compiler: skipped, it is not installed"; fi; \
	done

$(VENV)/installed: $(NATIVE)
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "trimtab needs Python 3.10 or newer with venv: install it, for example with 'apt-get install python3 python3-venv python3-dev'."; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo "trimtab builds its kernels from source and found no C++17 compiler: install one, for example with 'apt-get install g++'."; exit 1; }
	@echo "Setting up $(VENV): a few minutes, about 6 GB (torch brings most of it)."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "scikit-build-core>=1.1" "nanobind>=3" ninja cmake
	$(BIN)/pip install --quiet --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist
