#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Installs the modules on an installed host as kernel/README.md and docs/handover.md say.
# Runs in the sources. The arguments: the kernels to build for.

set -eu
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' kernel/dkms.conf)
cp -r kernel "/usr/src/pkernfs-$version"
for kernel in "$@"; do
	dkms install "pkernfs/$version" -k "$kernel"
done
install packaging/initramfs/hook /etc/initramfs-tools/hooks/pkernfs
install packaging/initramfs/init-top /etc/initramfs-tools/scripts/init-top/pkernfs
update-initramfs -u -k all
