# `make demo` and `make test` do all the set-up themselves, in $(VENV), with the tested versions of $(LOCK).
VENV ?= .venv
PYTHON ?= python3
LOCK ?= requirements.lock
TORCH ?= torch==2.13.0

BIN = $(VENV)/bin
# two processes, each with tests that lie together, as those share fixtures
PARALLEL = -n 2 --dist worksteal
INSTALLED = $(VENV)/.installed

.PHONY: demo test test-slow test-gpu coverage test-oldest test-newest oldest newest test-matrix lock
.PHONY: results docs docs-serve pictures style quality types

demo: $(INSTALLED)
	$(BIN)/jakiro demo

# To run only some: `make test TESTS=--compat`.
test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(TESTS)

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu $(TESTS)

# The share of lines and branches that `make test` runs: a table of the files with gaps, and build/coverage/index.html.
coverage: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --cov-report=html $(TESTS)

# The same tests with the oldest versions of everything that pyproject.toml allows, and with the newest there are today,
# in environments of their own. Neither looks at the lock.
test-oldest: oldest
	$(VENV)-oldest/bin/python -m pytest $(PARALLEL) $(TESTS)

test-newest: newest
	$(VENV)-newest/bin/python -m pytest $(PARALLEL) $(TESTS)

oldest:
	$(PYTHON) tools/environment.py $(VENV)-oldest --editable '.[test]' --resolution lowest-direct

newest:
	$(PYTHON) tools/environment.py $(VENV)-newest --editable '.[test]'

# The tests marked `compat` with every minor version of transformers, each in an environment of its own; writes
# docs/versions.md. To run only some: `make test-matrix MATRIX="5.15 5.24"`.
test-matrix:
	$(PYTHON) tools/matrix.py $(MATRIX)

# Exact versions of everything, for all Pythons and platforms: the newest that pyproject.toml allows, except PyTorch,
# which stays the one that the figures in the documentation were measured with.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv
	echo '$(TORCH)' | env -u UV_FIND_LINKS $(VENV)-lock/bin/uv pip compile --quiet --upgrade --universal \
		--python-version 3.11 --no-annotate --custom-compile-command 'make lock' \
		--extra dev --output-file $(LOCK) pyproject.toml -

# Measures a pair and writes docs/results.md: `make results TARGET=T DRAFT=D PROMPTS="a.jsonl b.jsonl" OPTIONS=...`, see
# `python docs/results.py --help`. Without TARGET and DRAFT only the page is written anew.
results: $(INSTALLED)
	$(BIN)/python docs/results.py $(PROMPTS) $(if $(TARGET),--target $(TARGET)) $(if $(DRAFT),--draft $(DRAFT)) $(OPTIONS)

# The documentation, in build/docs.
docs: $(INSTALLED)
	$(BIN)/python docs/supported_models.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The pictures of docs/how_it_works.md, from a run of the pair that ships and docs/results.
pictures: $(INSTALLED)
	$(BIN)/python docs/how_it_works.py

style: $(INSTALLED)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

quality: $(INSTALLED)
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

# The files that pyproject.toml lists.
types: $(INSTALLED)
	$(BIN)/mypy

$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) tools/environment.py $(VENV) --editable '.[dev]' $(if $(LOCK),--lock $(LOCK))
	touch $@
