# Every target sets itself up from a bare clone: .venv through scripts/bootstrap, RabbitMQ through scripts/rabbitmq.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test test-faults check format bench docs clean

BIN := .venv/bin
NODE := $(BIN)/python -m signalbus.testing.rabbitmq --
# Further arguments, e.g. `make test ARGS="-k contract -x"`.
ARGS ?=
# Tests mostly wait, for brokers and for deadlines: four at a time need a third of the time, also on two cores.
JOBS ?= 4
# `make demo RABBITMQ=no` shows the embedded broker only.
RABBITMQ ?= yes

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## show the bus at work: on SQLite, then on a private RabbitMQ node (RABBITMQ=no leaves that out)
	@scripts/bootstrap
	@$(BIN)/signalbus demo $(ARGS)
	@if [ "$(RABBITMQ)" = no ]; then exit 0; fi; \
	if [ -n "$$SIGNALBUS_TEST_AMQP_URL" ]; then $(BIN)/signalbus demo --url "$$SIGNALBUS_TEST_AMQP_URL" $(ARGS); \
	elif scripts/rabbitmq --local; then $(NODE) sh -c '$(BIN)/signalbus demo --url "$$SIGNALBUS_URL" $(ARGS)'; \
	else echo "demo: the RabbitMQ half was skipped" >&2; fi

test: ## run the tests, except the long fault rows
	@scripts/bootstrap test
	@scripts/rabbitmq || { [ -z "$$CI" ] || exit 1; echo "!!! RABBITMQ TESTS WILL BE SKIPPED !!!" >&2; }
	@scripts/chromium || { [ -z "$$CI" ] || exit 1; echo "!!! BROWSER TESTS WILL BE SKIPPED !!!" >&2; }
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-faults: ## run the long fault rows: kills, cuts, alarms
	@scripts/bootstrap test
	@scripts/rabbitmq || { [ -z "$$CI" ] || exit 1; echo "!!! RABBITMQ TESTS WILL BE SKIPPED !!!" >&2; }
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow $(ARGS)

check: ## ruff, mypy --strict and pyright
	@scripts/bootstrap test check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pyright --warnings

format: ## let ruff format and fix what it can
	@scripts/bootstrap check
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: ## measure throughput and latency on SQLite and on a private RabbitMQ node
	@scripts/bootstrap bench
	@if scripts/rabbitmq --local; then $(NODE) $(BIN)/python -m benchmarks $(ARGS); \
	else $(BIN)/python -m benchmarks $(ARGS); fi

docs: ## build the documentation into site/
	@scripts/bootstrap docs
	@$(BIN)/zensical build $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
