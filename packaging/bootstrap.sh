#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs what the lab and the tests need of this Debian machine, if it is not there yet.
# A list of commands, and the package that each one comes from.

set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=

need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null || missing="$missing $2"
}

need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need modprobe kmod
need unshare util-linux
need mount mount
need gcc gcc
need mandoc mandoc
# What a test lets GRUB itself say of the words that pkernfs reserve writes.
need grub-mkimage grub-common
[ -e /usr/lib/grub/i386-pc/boot.img ] || missing="$missing grub-pc-bin"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "missing packages, to be installed as root:$missing" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of packages
apt-get install -y -qq --no-install-recommends $missing >/dev/null
