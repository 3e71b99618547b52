# `make demo` and `make test` need nothing but python3 with venv: the first run sets up .venv,
# later runs redo that only when pyproject.toml has changed.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint typecheck bench build clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/runtime.stamp data/stdlib  ## train a small model over two emulated regions; pictures in runs/
	$(BIN)/crosspipe train cluster_configs/demo.yaml

test: .venv/test.stamp  ## run the tests; ARGS goes to pytest, as in make test ARGS="-k planners -x"
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/dev.stamp  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/dev.stamp  ## check types
	$(BIN)/mypy

bench: .venv/test.stamp  ## measure the clock, the engine and rehearsals, as in docs/figures.md (ten minutes, nothing else running)
	@for name in simulator engine_overhead rehearsal_accuracy; do \
		echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

build: .venv/dev.stamp  ## make the sdist, and the wheel from the sdist, in dist/
	rm -rf dist
	$(BIN)/python -m build

clean:  ## remove everything that make has made, except runs/
	rm -rf .venv build dist data/stdlib *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The tokens of the demo: the top-level modules of Python's own standard library, 5 MB of text that is
# already here. (Not the whole folder: site-packages may lie in it.)
data/stdlib: | .venv/runtime.stamp
	$(BIN)/crosspipe data prepare --output $@ \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"/*.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "crosspipe_ray needs Python 3.10 or newer")'
	$(PYTHON) -m venv .venv

.venv/runtime.stamp: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/test.stamp: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable ".[test]"
	@touch $@ .venv/runtime.stamp

.venv/dev.stamp: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@ .venv/test.stamp .venv/runtime.stamp
