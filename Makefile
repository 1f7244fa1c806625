# `make demo` and `make test` need a clone and Python 3.12, nothing else.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test chaos check serve format clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml requirements.txt
	@scripts/make-venv $(VENV)
	@touch $@

demo: $(STAMP)  ## Start the service, run the example batch, show the comparison (KEEP=1 stays up)
	@$(BIN)/wtb demo $(if $(KEEP),--keep)

test: $(STAMP)  ## Run the tests
	$(BIN)/pytest $(ARGS)

chaos: $(STAMP)  ## Kill things at random for 20 minutes, check that nothing is lost (ARGS="--minutes 2")
	$(BIN)/python -m benchmarks.chaos $(ARGS)

check: $(STAMP)  ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(STAMP)  ## Run the service in the foreground
	$(BIN)/wtb serve serve_config.yaml

clean:  ## Remove the virtual environment and all data
	rm -rf $(VENV) .wtb
