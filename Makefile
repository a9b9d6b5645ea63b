# Everything runs in .venv, which `install` makes. `make` alone lists the targets.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
TARGET := cpu
.PHONY: help install quickstart test test-unit test-ray test-long check format proto bench image clean

help:           ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP)  ## make .venv with everything that quickstart and tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,dev]'
	@touch $(STAMP)

quickstart: $(STAMP)  ## train, score and apply a real model on the sample corpus (about a minute)
	$(BIN)/rayner train --config quickstart --fresh

test: test-unit test-ray  ## run the tests, but for the long ones

test-unit: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile tests/unit

test-ray: $(STAMP)
	$(BIN)/python -m pytest -m "not long" --ignore tests/unit

test-long: $(STAMP)  ## run the long ones: more faults, more ways to search and compress (an hour)
	$(BIN)/python -m pytest -m long

check: $(STAMP)  ## lint, types, floor plan
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_floor_plan.py

format: $(STAMP)  ## put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP)  ## make the gRPC code anew from serve/entities.proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. serve/entities.proto

bench: $(STAMP)  ## quality on the real corpora and speeds (some hours); writes benchmarks/results
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.plan_scale
	$(BIN)/python -m benchmarks.tune
	$(BIN)/python -m benchmarks.compress
	$(BIN)/python -m benchmarks.augmentation
	$(BIN)/python -m benchmarks.pretrain

image:          ## build the CPU image of deploy/Dockerfile; `make image TARGET=gpu` the other
	docker build -f deploy/Dockerfile --target $(TARGET) -t rayner:0.1.0-$(TARGET) .

clean:          ## remove what was built, not what was trained
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
