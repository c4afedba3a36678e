# Set-up is automatic: every target builds .venv first, and rebuilds the kernels when their sources change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt) CMakeLists.txt pyproject.toml

.PHONY: bench demo test test-slow test-data mutants check lint types selftest sanitize fuzz aarch64 clean

demo: $(VENV)/installed
	$(BIN)/trimtab search

# A process for each core.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(VENV)/installed
	$(BIN)/pytest -m "not slow" $(PARALLEL)

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

test-data: $(VENV)/installed
	$(BIN)/pytest -m data

mutants: $(VENV)/installed
	$(BIN)/python -m tests.mutants $(WORDS)

# About half an hour for each kernel level; SECONDS_EACH=0.2 MINUTES=2 gives a first impression.
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

# The engine without Python: built by CMake alone, compared with plain loops.
SELFTEST = $(CMAKE) -S . -DTRIMTAB_SELFTEST=ON -B
CMAKE := $(firstword $(wildcard $(BIN)/cmake) cmake)

selftest:
	$(SELFTEST) build/selftest >/dev/null
	$(CMAKE) --build build/selftest --parallel
	build/selftest/kernels/selftest

sanitize: $(VENV)/installed
	@for compiler in g++ clang++; do \
	  if command -v $$compiler >/dev/null; then tests/sanitize.sh $(BIN)/python $$compiler || exit 1; \
	  else echo "$$compiler: skipped, it is not installed"; fi; \
	done
	$(SELFTEST) build/sanitize/thread -DTRIMTAB_SANITIZE=thread >/dev/null
	$(CMAKE) --build build/sanitize/thread --parallel
	build/sanitize/thread/kernels/selftest

SECONDS := 300
fuzz: $(VENV)/installed
	-$(BIN)/pip install --quiet atheris
	$(BIN)/python -m tests.fuzz.fuzz_artefact $(SECONDS)

aarch64:
	@if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null; then \
	  $(SELFTEST) build/aarch64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null && \
	  $(CMAKE) --build build/aarch64 --parallel && \
	  qemu-aarch64-static build/aarch64/kernels/selftest; \
	else \
	  echo "aarch64: skipped; it needs 'apt-get install g++-aarch64-linux-gnu qemu-user-static'"; \
	fi

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
