# SPDX-License-Identifier: GPL-2.0-only
#
# make demo       a guest outlives its host's kernel, in a virtual host on this machine
# make demo-passthrough  the same with a network card of the host that is passed through to it
# make test       all tests but those of the next lines
# make test-passthrough  guests with a passed-through network card, 6 minutes
# make test-installed  pkernfs on an ordinary Debian, booted by GRUB: 12 minutes beside other work,
#                 and the first time its disk is made; needs loop devices
# make test-system  the ones in virtual hosts
# make test-debug  filesystem and devices on a kernel that checks itself (KASAN, lockdep, kmemleak),
#                 and allocations that fail, each in turn; the first time that kernel is built
# make test-unit  the ones without a virtual host, a minute or two
# make lint       ruff and mypy
# make man        manual pages, in build/man
# make install-docs  manual pages and shell completion, below $(DESTDIR)$(PREFIX)
# make bench      side by side with what people use today: an hour on 2 cores, and the first
#                 time a kernel is built for it; BENCH=quick make bench takes some minutes
# make soak N=100  update after update between both kernels, to see leaks
# make install-units  units for systemd, below DESTDIR
#
# On a fresh Debian 12 as root, with python3, gcc and make: the first run installs what
# is missing and keeps what it builds in .venv and ~/.cache/pkernfs.

PYTHON := $(shell command -v python3.11 || command -v python3)
VENV := .venv
PREFIX ?= /usr/local
DATADIR = $(DESTDIR)$(PREFIX)/share
READY := $(VENV)/.ready
PYTEST := $(VENV)/bin/python -m pytest

# Two hosts at a time, on two cores; a host under test has two processors, or one with KVM in it.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
# The emulation itself failed in one of a hundred hosts or so (a nested guest that never printed
# its first line), while it was QEMU 7.2's; 11.1's has not been counted yet. A test that fails
# because its host does not answer is run once more, and the summary names it; an assertion that
# fails counts at once.
SECOND_TRY := --reruns 1 --rerun-except AssertionError --rerun-except "^assert" -rR

.PHONY: demo demo-passthrough test test-unit test-system test-passthrough test-installed test-debug native lint man install-docs install-units bench soak clean

demo: $(READY)
	$(VENV)/bin/pkernfs lab demo

demo-passthrough: $(READY)
	$(VENV)/bin/pkernfs lab demo --passthrough

test: test-unit
	$(VENV)/bin/pkernfs lab image
	$(PYTEST) $(WORKERS) $(SECOND_TRY) -v --durations 12 --timeout 1200 -m "system or fuzz" tests

test-unit: $(READY) native
	$(PYTEST) $(WORKERS) tests/unit

test-system: $(READY)
	$(VENV)/bin/pkernfs lab image
	$(PYTEST) $(WORKERS) $(SECOND_TRY) -v --timeout 1200 -m system tests/system

test-passthrough: $(READY)
	$(VENV)/bin/pkernfs lab image
	$(PYTEST) -v --timeout 1800 -m passthrough tests/system/test_passthrough.py

test-installed: $(READY)
	$(VENV)/bin/pkernfs lab image --installed
	$(PYTEST) -v -rR --timeout 2400 -m installed tests/system/test_installed.py

# What runs on it: these files, and of test_handover.py one update under DMA.
ON_DEBUG := $(addprefix tests/system/,test_debug.py test_filesystem.py test_vfio.py test_devices.py \
	test_handover.py::test_no_frame_is_lost)

test-debug: $(READY)
	$(VENV)/bin/python -m pkernfs.lab.debug_kernel
	PKERNFS_TEST_KERNELS=debug $(PYTEST) $(WORKERS) -v --durations 12 -m "system or debug" $(ON_DEBUG)

# Before the tests, whose workers would build it at the same time.
native:
	$(MAKE) --no-print-directory -s -C kernel/tests

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# A full run writes docs/benchmarks.md, a quick one only build/bench/benchmarks.md.
bench: $(READY)
	$(VENV)/bin/python -m bench.ratios --part guests $(if $(filter quick,$(BENCH)),--rounds 1)
	$(VENV)/bin/python -m bench.ratios --part size $(if $(filter quick,$(BENCH)),--rounds 1,--docs)
	$(VENV)/bin/python -m bench $(if $(filter quick,$(BENCH)),--quick,--docs)

N ?= 100
soak: $(READY)
	$(VENV)/bin/python -m bench.soak --rounds $(N)

# Both come from the parser of the command line itself.
man: $(READY)
	$(VENV)/bin/python -m pkernfs.cli.man build/man
	mkdir -p build/completion
	$(VENV)/bin/pkernfs completion bash >build/completion/pkernfs
	$(VENV)/bin/pkernfs completion zsh >build/completion/_pkernfs
	$(VENV)/bin/pkernfs completion fish >build/completion/pkernfs.fish

install-docs: man
	install -d $(DATADIR)/man/man1 $(DATADIR)/bash-completion/completions \
		$(DATADIR)/zsh/site-functions $(DATADIR)/fish/vendor_completions.d
	install -m 644 build/man/*.1 $(DATADIR)/man/man1
	install -m 644 build/completion/pkernfs $(DATADIR)/bash-completion/completions
	install -m 644 build/completion/_pkernfs $(DATADIR)/zsh/site-functions
	install -m 644 build/completion/pkernfs.fish $(DATADIR)/fish/vendor_completions.d

$(READY): pyproject.toml packaging/bootstrap.sh
	PYTHON=$(PYTHON) packaging/bootstrap.sh
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

UNITS := $(wildcard packaging/systemd/*)
UNIT_DIR := $(DESTDIR)/usr/local/lib/systemd/system

# The program itself comes by pip; systemd looks for it in /usr/local/bin and /usr/bin.
install-units:
	install -d $(UNIT_DIR)
	install -m 644 $(UNITS) $(UNIT_DIR)

clean:
	rm -rf build $(VENV)
