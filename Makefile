# make book, make test: from a fresh clone, they do all that is needed.

PYTHON ?= python3
PY      = .venv/bin/python
PYTEST  = $(PY) -m pytest -q -rs -n auto --maxprocesses 4
SITE    = _build/html/.built
SOURCES = $(shell find 2>/dev/null chapters site intro.md _config.yml _toc.yml \
            companion/*/*.py companion/*.py requirements.txt \
            _build/executed/*.ipynb -not -path '*/__pycache__*')

# Figures are drawn with the environment's list of fonts, not the reader's.
export MPLCONFIGDIR = $(CURDIR)/.venv/matplotlib

.PHONY: help book test tangle notebooks serve check clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

book: tangle ## set up, tangle, execute what changed, build the site
	$(PY) -m companion execute
	@$(MAKE) -s $(SITE)
	@$(PY) -c "from pathlib import Path as P; print('The book:', P('_build/html/index.html').resolve().as_uri())"

test: book ## every test: tools, library, notebooks, pages
	$(PYTEST) -m "" --nbval --elsewhere $(NOTEBOOKS) tests site/notebooks

$(SITE): $(SOURCES)
	.venv/bin/jupyter-book build . -W -n --keep-going
	@touch $@

tangle: .venv/ready ## write the library and its tests from the chapters
	$(PY) -m companion tangle

notebooks: tangle ## record the chapters' outputs in site/notebooks
	$(PY) -m companion notebook

serve: .venv/ready ## read the book while editing it
	$(PY) -m companion serve

check: .venv/ready ## quick checks: freshness, lint, types, style
	$(PY) -m companion tangle --check
	$(PY) -m companion lint
	$(PY) -m mypy
	$(PY) -m ruff check
	$(PY) -m pytest -q

clean: ## remove what was built; the environment stays
	rm -rf _build

.venv/ready: requirements.txt site/environment.py
	@command -v $(PYTHON) >/dev/null || { echo "error: Python 3.11 or newer \
	is needed, and there is no $(PYTHON): install it, or name one \
	you have (make book PYTHON=python3.12)" >&2; exit 1; }
	@$(PYTHON) site/environment.py
