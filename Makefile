# Every target sets itself up: the first one makes .venv and installs walvec with pinned versions into it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# Test files that run side by side: most of them wait for processes rather than compute.
PROCESSES ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo up test kafka check style fmt bench clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## .venv with walvec and its tools

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## everything embedded: a table, its vectors, searches, a kill and a recovery
	@$(BIN)/walvec demo

up: $(READY) ## walvec on http://127.0.0.1:8080, data in ./.walvec
	@$(BIN)/walvec up

test: $(READY) ## all tests, on a real PostgreSQL that comes with the installation; on a real Kafka where there is Java
	$(BIN)/pytest -m "not bench" -rsfE --tb=short -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

kafka: $(READY) ## the jars of the tests' Kafka broker and of Debezium, once, into ~/.cache/walvec (needs Java 17, Maven)
	@$(BIN)/python -m tests.plugins.jars

check: style ## style, types, import laws, fast tests
	$(BIN)/pytest -q -n $(PROCESSES) --dist loadfile tests/unit tests/contract -m "not bench" -k "not postgres and not pgvector and not kafka"

style: $(READY) ## style, types, import laws
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(READY) ## format and mend what can be mended
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY) ## measurements of the whole pipeline, as a table and as JSON
	$(BIN)/python -m tests.bench.pipeline

clean: ## caches and .venv
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
