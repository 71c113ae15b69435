# Everything runs in .venv, which is made where it is missing, with the versions pinned in requirements*.txt.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test test-slow lint docs recipe ui bench clean

install: .venv/installed

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

# What is made: the outputs, figures and screenshots of README and docs, in some ten minutes, and every key of the recipe.
# PHOTOS=folder/ takes other pictures than the packaged ones, PARTS="method notebook tour" some parts.
docs: recipe
	python -m docs.make $(if $(PHOTOS),--photos $(PHOTOS)) $(if $(PARTS),--parts $(PARTS))

recipe: .venv/installed
	python -m pipeline recipe > docs/recipe.md.new
	mv docs/recipe.md.new docs/recipe.md

# MLflow's page opens with what language models want; this address has the experiments of training. Without jobs, which are
# for language models too, it starts eight processes less.
ui: .venv/installed
	@echo "Open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui

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

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-s3.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@

.venv/installed-bench: .venv/installed requirements-bench.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-bench.txt
	touch $@
