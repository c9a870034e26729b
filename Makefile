# Each target installs what it runs, once; a second target adds to the same environment.
# PYTHON picks the interpreter (3.11 or newer): make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# uv, where it is on the path, installs in a fraction of pip's time. Where packages come from an
# index that pip alone is set up for, uv finds none, and pip takes its place. Only where
# PYTHONDONTWRITEBYTECODE is set does uv compile what it installs: each process would do so anew.
UV := $(shell command -v uv 2>/dev/null)
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check
WHAT = --constraint constraints.txt --editable '.[$(EXTRAS_$*)]'
# One worker more than CI has cores: tests wait for processes and servers.
PYTEST = $(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

EXTRAS_demo := train,demo
EXTRAS_text := train,demo,text
EXTRAS_submit := train,demo,submit
EXTRAS_serve := train,demo,text,serve
EXTRAS_test := train,data,text,cluster,demo,trackers,tune,bench,export,submit,serve,test

.PHONY: help demo demo-text serve preflight test suite test-all lint lock clean

help:
	@echo "make demo      train, export, rank and score on the embedded catalogue (five to eight minutes)"
	@echo "make demo-text search the same catalogue by text (about three minutes)"
	@echo "make serve     search the demo's catalogue in the browser, at http://127.0.0.1:8000 (after make demo)"
	@echo "make preflight check everything that makes submissions fail"
	@echo "make test      style, types, imports and the test suite"
	@echo "make test-all  the same with the slow tests"
	@echo "make lock      pin the newest versions of everything in constraints.txt"
	@echo "make clean     remove the environment and what the demo wrote"

demo: $(VENV)/.demo
	$(RUN) -m visual_search.main_demo

demo-text: $(VENV)/.text
	$(RUN) -m visual_search.main_demo --text

serve: $(VENV)/.serve
	$(RUN) -m visual_search.main_demo --serve

preflight: $(VENV)/.submit
	$(RUN) -m my_submission.preflight

test: lint suite

suite: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# Pins that stand in the file stay unless UPGRADE=--upgrade; the same file serves Python 3.11 and newer.
lock: $(VENV)/.made
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" $(UPGRADE) \
	  pyproject.toml --output-file constraints.txt

clean:
	rm -rf $(VENV) runs/demo runs/demo_*

# Debian's Python comes without `venv`: virtualenv, unpacked into a folder of its own, stands in.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV) && \
	  $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
	  PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-bootstrap; }
	@touch $@

# What the tests install serves the demos too.
$(VENV)/.%: pyproject.toml requirements.txt constraints.txt | $(VENV)/.made
	@echo "installing [$(EXTRAS_$*)] into $(VENV) (once; most of it is PyTorch, about 5 GB where the registry has only GPU builds)"
	$(if $(UV),VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode) $(WHAT) ||) $(PIP) $(WHAT)
	@touch $@ $(if $(filter test,$*),$(VENV)/.demo $(VENV)/.text $(VENV)/.submit $(VENV)/.serve) \
	  $(if $(filter text submit serve,$*),$(VENV)/.demo) $(if $(filter serve,$*),$(VENV)/.text)
