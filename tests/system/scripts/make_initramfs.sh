#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# An initrd of Debian's initramfs-tools, with packaging/initramfs installed as
# docs/handover.md says. Runs in a mount namespace of its own: nothing stays but the results.
#
# make_initramfs.sh ROOT VERSION MODULES HOOKS SCRIPTS OUTPUT
#
# ROOT: a Debian tree with that kernel; MODULES, HOOKS, SCRIPTS: directories with our modules,
# packaging/initramfs, tests/system/scripts; OUTPUT: directory for "initrd" and its "files".

set -e
root=$1 version=$2 modules=$3 hooks=$4 scripts=$5 output=$6
mount -t tmpfs work /mnt
mkdir /mnt/upper /mnt/work /mnt/merged
mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" root /mnt/merged
cd /mnt/merged
mount -t proc proc proc
mount --rbind /dev dev
mkdir "usr/lib/modules/$version/updates"
cp "$modules"/*.ko "usr/lib/modules/$version/updates"
chroot . depmod "$version"
install -m 755 "$hooks/hook" etc/initramfs-tools/hooks/pkernfs
install -m 755 "$hooks/init-top" etc/initramfs-tools/scripts/init-top/pkernfs
install -m 644 "$scripts/initramfs_lab" etc/initramfs-tools/scripts/lab
# For "lab"; what comes with the kernel lists it as no driver of a root file system.
echo overlay >>etc/initramfs-tools/modules
chroot . mkinitramfs -o /initrd "$version"
chroot . unmkinitramfs /initrd /unpacked
cp initrd "$output/initrd"
cd unpacked
find . -type f >"$output/files"
cp scripts/init-top/ORDER "$output/order"
