# Thin over tools/make.py, which does the work on every platform (on Windows: `py tools/make.py test`).
#
#   make run      installs into .venv on the first call, then runs a recipe (RECIPE=quickstart, ARGS="a.b=c …")
#   make test     ruff, mypy and pytest in the same .venv (ARGS="tests/models -k cache" picks tests)
#   make lint     ruff and mypy alone
#   make bench    the benchmarks
#   make docs     the site, into site/
#   make clean    removes .venv and the caches; runs/ stays
#
# PYTHON=python3.12 picks the interpreter, VENV=folder the environment.

PYTHON ?=
VENV ?= .venv
RECIPE ?= quickstart
ARGS ?=

export QUATRAIN_PYTHON := $(PYTHON)
START = $(if $(PYTHON),"$(PYTHON)",python3) tools/make.py

.PHONY: run test lint bench docs clean install python
.DEFAULT_GOAL := run

run: python
	@$(START) --venv "$(VENV)" run "$(RECIPE)" $(ARGS)

test lint bench docs: python
	@$(START) --venv "$(VENV)" $@ $(ARGS)

install clean: python
	@$(START) --venv "$(VENV)" $@

python:
	@command -v $(if $(PYTHON),"$(PYTHON)",python3) >/dev/null || { \
	  echo "No Python found as '$(or $(PYTHON),python3)'. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 2; }
