# SPDX-License-Identifier: GPL-2.0-only
#
# make demo       a guest outlives its host's kernel, in a virtual host on this machine
# make test       all tests, at most 30 minutes on 2 cores
# make test-unit  the ones without a virtual host, at most 60 seconds
# make lint       ruff and mypy
#
# On a fresh Debian 12 as root, with python3, gcc and make: the first run installs what
# is missing and keeps what it builds in .venv and ~/.cache/pkernfs.

PYTHON := $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
PYTEST := $(VENV)/bin/python -m pytest

.PHONY: demo test test-unit test-system lint clean

demo: $(READY)
	$(VENV)/bin/pkernfs lab demo

test: $(READY)
	$(PYTEST) tests/unit
	$(PYTEST) --timeout 900 -m system tests/system

test-unit: $(READY)
	$(PYTEST) tests/unit

test-system: $(READY)
	$(PYTEST) --timeout 900 -m system tests/system

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy src tests

$(READY): pyproject.toml packaging/bootstrap.sh
	PYTHON=$(PYTHON) packaging/bootstrap.sh
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV)
