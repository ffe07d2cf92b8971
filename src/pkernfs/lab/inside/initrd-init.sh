#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# First program of a lab host's kernel: find the root file system, switch to it.
# The disks, in the order of the command line that the lab gives to QEMU:
# vda Debian image (read-only), vdb layer with modules and package (read-only).

fail() {
	echo "lab: initrd: $1" >/dev/kmsg
	poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
	# Some are for processors that this is not; what is really missing shows below.
	insmod "/modules/$module" 2>/dev/null
done
mount -t ext4 -o ro /dev/vda /base || fail "no host image"
mount -t ext4 -o ro /dev/vdb /layer || fail "no layer"
mount -t tmpfs -o mode=755 changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/layer:/base,upperdir=/changes/upper,workdir=/changes/work \
	root /root || fail "no overlay"
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
first=/usr/lib/pkernfs-lab/host-init.sh
if grep -qw pkernfs_lab=systemd /root/proc/cmdline; then
	first=/usr/lib/systemd/systemd
fi
exec switch_root /root "$first"
