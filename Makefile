# The two commands of a new user are `make demo` and `make serve`; those of a developer `make check test`.
# Nothing but Python 3.11 or newer and make is needed: everything else goes into .venv, by hash.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= config.toml

.PHONY: serve demo test check bench bench-quick bench-peers format lock clean

serve: $(VENV)/.runtime
	@exec $(BIN)/tproxy serve --config $(CONFIG)

demo: $(VENV)/.runtime
	@exec $(BIN)/tproxy serve --config $(CONFIG) --sandbox

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

# Off: 109 and 110, as in pyproject.toml; 91x, which want a checkpoint in every function, also in those that run once for
# each event of a stream.
ASYNC_RULES := --disable ASYNC109,ASYNC110,ASYNC124,ASYNC910,ASYNC911,ASYNC912,ASYNC913 \
	--startable-in-context-manager serve_sandbox,_signals
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/flake8-async $(ASYNC_RULES) $$(git ls-files 'tproxy/*.py' 'tests/*.py' 'bench/*.py')
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

bench-quick: $(VENV)/.dev
	$(BIN)/python -m bench --quick $(ARGS)

# What the bench compares with, into .bench-peers; nothing else needs it.
bench-peers: $(VENV)/.dev
	$(BIN)/python -m bench.install_peers $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A stamp per lock file, so that a changed lock reinstalls.
$(VENV)/.runtime: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tproxy needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

# Written by uv, which only this target needs. No index address goes into the files.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate
lock:
	$(LOCK) pyproject.toml --group build -o requirements.lock
	$(LOCK) pyproject.toml --group build --group dev -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
