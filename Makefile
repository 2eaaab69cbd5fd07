# The two commands for a newcomer are `make demo` and `make test`; each installs what it needs by itself.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV_VERSION := 0.13.9
UV     := $(BIN)/uv pip install --quiet --python $(BIN)/python

# Where it is set, each process compiles torch and transformers anew: a `fit` of two steps takes 20 s instead of 10.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow lint types bench lock clean

setup: $(VENV)/.installed

# The lock first, exactly; then both packages on top of it, editable, without looking at dependencies again.
$(VENV)/.installed: requirements/lock.txt packages/vlmdata/pyproject.toml packages/vlmtrain/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) --requirements requirements/lock.txt
	$(UV) --no-deps --no-build-isolation --editable packages/vlmdata --editable packages/vlmtrain
	touch $@


demo: setup
	$(MAKE) -C examples/digits BIN=$(abspath $(BIN))

test: lint types
	$(BIN)/pytest -m "not slow and not gpu" -n 2 --dist worksteal

test-slow: setup
	$(BIN)/pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/fit_memory.py
	$(BIN)/python benchmarks/memory_growth.py
	$(BIN)/python benchmarks/dedup_scale.py
	$(BIN)/python benchmarks/build_speed.py

# Writes requirements/lock.txt anew from requirements/dev.in and the packages' own ranges.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	    --no-emit-package vlmdata --no-emit-package vlmtrain requirements/dev.in --output-file requirements/lock.txt

clean:
	rm -rf $(VENV) examples/digits/out
