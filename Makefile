# Targets set up the environment that they need. PYTHON is the interpreter, VENV the environment's directory.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Four processes for two cores, because tests of services wait much; a file stays in one, so that its services start once
# A process that a test ends is not started again: the tests that it had would never be run
ARGS ?= -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help run test check screenshots audit lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

run: $(VENV)/.installed  ## train the demo models if there are no models, then serve on $PORT (8000)
	@test -n "$$(ls -A "$${MODEL_DIR:-models}" 2>/dev/null)" || $(BIN)/forkserve train
	@exec $(BIN)/forkserve serve

test: $(VENV)/.installed-dev  ## run all tests, or those that ARGS names
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest $(ARGS)

check: $(VENV)/.installed-dev  ## lint and type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

screenshots: $(VENV)/.installed-dev  ## take the pictures of the pages that the documents show
	$(BIN)/python -m harness.screenshots docs

audit: $(VENV)/.installed-dev  ## look for known vulnerabilities in the locked requirements
	$(BIN)/python .ci/audit.py requirements.txt

lock: $(VENV)/.installed-dev  ## resolve and lock the requirements again, for Python 3.11 to 3.14
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --extra build --extra demo pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --extra build --extra demo --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "forkserve needs Python 3.11 to 3.14, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.txt
	@touch $@
