# Each target does all its own set-up; a second call installs nothing again.
# PYTHON picks the interpreter (3.11 or newer): make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo demo-text preflight test test-all lint clean

help:
	@echo "make demo      train, export, rank and score on the embedded catalogue (five to nine minutes)"
	@echo "make demo-text search the same catalogue by text (about three minutes)"
	@echo "make preflight check everything that makes submissions fail"
	@echo "make test      style, types and the test suite"
	@echo "make test-all  the same with the slow tests"
	@echo "make clean     remove the environment and what the demo wrote"

demo: $(VENV)/.installed
	$(RUN) -m visual_search.main_demo

demo-text: $(VENV)/.installed
	$(RUN) -m visual_search.main_demo --text

preflight: $(VENV)/.installed
	$(RUN) -m my_submission.preflight

test: lint
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not slow"

test-all: lint
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) runs/demo runs/demo_*

# Debian's Python comes without `venv`: virtualenv, unpacked into a folder of its own, stands in.
$(VENV)/.installed: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up $(VENV) (once; about 6 GB, a few minutes)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV) && \
	  $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
	  PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-bootstrap; }
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[train,data,text,cluster,demo,trackers,tune,bench,export,submit,test]'
	@touch $@
