#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs the program and its units on an installed host as README.md says; what pip would
# load from an index lies in wheels/. Runs in the sources.

set -eu
python3 -m venv /opt/pkernfs
/opt/pkernfs/bin/pip install --quiet --no-index --find-links wheels pkernfs
ln -s /opt/pkernfs/bin/pkernfs /usr/local/bin
make install-units
systemctl enable pkernfs.target
