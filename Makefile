# `make demo` and `make test` do their own set-up: a virtual environment in .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check test-cluster test-crash test-scale install clean

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" bash jobs/demo.sh

test: check
	$(BIN)/python -m pytest -m "not cluster and not crash and not scale"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m cluster --timeout 3600

test-crash: $(STAMP)
	$(BIN)/python -m pytest -m crash -rP --timeout 3600

test-scale: $(STAMP)
	$(BIN)/python -m pytest -m scale --timeout 7200

install: $(STAMP)

# torch is installed first and by its exact version: asked for with the rest, pip may take a build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)" "$$(grep '^numpy==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,s3]'
	$(BIN)/python -m pip check
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
