# Everything runs in .venv, which is made where it is missing, with the versions pinned in requirements*.txt.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint docs ui bench clean

demo: .venv/installed
	mlflow run . --env-manager local
	@echo "Look at the curves, the report and the registered model:  make ui"

test: .venv/installed-dev lint
	python -m pytest -m "not slow" --numprocesses 2 --no-loadscope-reorder

test-slow: .venv/installed-dev
	python -m pytest -m slow

lint: .venv/installed-dev
	ruff check .
	ruff format --check .
	mypy

# What is made from the code: every key of the recipe.
docs: .venv/installed
	python -m pipeline recipe > docs/recipe.md.new
	mv docs/recipe.md.new docs/recipe.md

ui: .venv/installed
	mlflow ui

# FORM=full has more pictures and rounds.
bench: .venv/installed-bench
	python -m benchmarks.side_by_side $(if $(filter full,$(FORM)),--full)

clean:
	rm -rf .venv

.venv/installed: requirements.txt
	@echo "Installing what requirements.txt pins into .venv, which takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@

.venv/installed-bench: .venv/installed requirements-bench.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-bench.txt
	touch $@
