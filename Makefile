# `make demo` and `make test` install a virtual environment in .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Compiled modules are kept, also if the environment says otherwise: hundreds of processes that tests start would compile them again.
unexport PYTHONDONTWRITEBYTECODE

# Tests run in WORKERS processes: more than the two cores of a small machine, because many tests wait. On more cores, use more.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test tests quick check docs test-cluster test-crash test-scale test-online test-newest install clean

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" bash jobs/demo.sh

# The checks and the tests run at the same time: both use one core for much of their time.
test: $(STAMP)
	$(MAKE) --no-print-directory --jobs 2 check tests

tests: $(STAMP)
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long"

quick: $(STAMP)
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m unit

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# -W: a warning is an error; a broken link between pages is a warning.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/site
	@echo "open docs/site/index.html"

test-cluster: $(STAMP)
	$(PYTEST) -m long tests/test_cluster.py --timeout 3600

test-crash: $(STAMP)
	$(PYTEST) -m long tests/test_crash.py tests/test_crash_matrix.py tests/test_crash_network.py tests/test_purge.py -rP --timeout 3600

test-scale: $(STAMP)
	$(PYTEST) -m long tests/test_adapter_layouts.py tests/test_adapter_runs.py tests/test_download.py tests/test_evaluate_paper.py tests/test_poison.py tests/test_rdm_parity.py tests/test_sources_urls.py tests/test_train_atelier.py tests/test_urls.py --timeout 7200

# Tests that need the network: WikiArt, ArtBench, CLIP and rdm-768 are downloaded (about 12 GB, kept in ~/.cache/rdmpipe-online and the Hub's cache),
# compared with their known checksums and counts, and used. Without a network, the tests are skipped with the reason.
test-online: $(STAMP)
	$(PYTEST) -m online tests/test_online.py -rs --timeout 7200

# The newest release of every dependency, without upper bounds, in a separate environment, to show which release breaks what. TORCH may name a
# CPU build if `torch` would install gigabytes of CUDA, and PYTHON the newest Python: make test-newest PYTHON=python3.13 TORCH=torch==2.13.0
NEWEST ?= .venv-newest
TORCH ?= torch
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet '$(TORCH)' -e '.[dev]'
	$(NEWEST)/bin/python -m pip list
	$(NEWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not (cluster or long or online)"

install: $(STAMP)

# torch is installed first and by its exact version; otherwise pip may choose a build with gigabytes of CUDA. --no-compile: Python compiles
# a module when it is first imported; to compile all modules of all packages takes a minute.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt "$$(grep '^torch==' constraints.txt)" "$$(grep '^numpy==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev,docs,autofaiss]'
	$(BIN)/python -m pip check
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) build docs/site *.egg-info .pytest_cache .mypy_cache .ruff_cache
