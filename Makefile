# `make demo` and `make test` do all the set-up themselves, in $(VENV).
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
OLDEST ?= torch==2.6.0 transformers==5.15.0 accelerate==1.10.0 peft==0.20.0 rich==13.8.0 jinja2==3.1.0

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo test test-slow test-oldest results docs docs-serve pictures style quality

demo: $(INSTALLED)
	$(BIN)/jakiro demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# The same tests against the oldest supported versions, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet $(OLDEST)
	$(VENV)-oldest/bin/pip install --quiet --editable '.[test]'
	$(VENV)-oldest/bin/python -m pytest -n 2

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

# PyTorch first, and of the kind that fits the machine: a wheel from pip's own `find-links` if there is one, else what
# uv's `--torch-backend=auto` picks (a CPU build without a GPU). Otherwise pip would draw gigabytes of CUDA libraries.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-index --no-deps $(TORCH) 2>/dev/null || ( \
		$(BIN)/pip install --quiet uv && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=auto $(TORCH) )
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
