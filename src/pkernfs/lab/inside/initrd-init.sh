#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# First program of a lab host's kernel: find the root file system, the store and the disk of
# the guests, switch to the root file system.
# The disks, in the order of the command line that the lab gives to QEMU:
# vda Debian image (read-only), vdb layer with modules and package (read-only).
#
# After a kexec a paused guest waits for this, and under emulation every new process
# counts: what is mounted here is mounted by busybox without starting one. What fails of
# the host's part is done again, and reported, by host-init.sh.

fail() {
	echo "lab: initrd: $1" >/dev/kmsg
	poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "lab: first program" >/dev/kmsg

own=yes store=yes option=init parameters=
read -r line </proc/cmdline
for word in $line; do
	case $word in
	pkernfs_lab=systemd) own=no ;;
	# An update's next kernel must find a store; a range that was never used gets one.
	pkernfs_update=*) option=defaults ;;
	pkernfs_lab_store=*) store=${word#*=} ;;
	pkernfs.*) parameters="$parameters ${word#pkernfs.}" ;;
	esac
done

# What guests need of the kernel, beside the disks.
[ $own = no ] || {
	read -r order </modules/host
	for module in $order; do
		insmod "/modules/$module"
	done
	[ $store = no ] || insmod /modules/pkernfs.ko $parameters
} 2>/dev/null &

read -r order </modules/order
for module in $order; do
	# Some are for processors that this is not; what is really missing shows below.
	insmod "/modules/$module" 2>/dev/null
done
mount -t ext4 -o ro /dev/vda /base || fail "no host image"
mount -t ext4 -o ro /dev/vdb /layer || fail "no layer"
mount -t tmpfs -o mode=755 changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/layer:/base,upperdir=/changes/upper,workdir=/changes/work \
	root /root || fail "no overlay"
# pkernfs reads /proc/cmdline, there.
wait
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev

[ $own = yes ] || exec switch_root /root /usr/lib/systemd/systemd
mkdir /root/dev/pts /root/dev/shm
mount -t devpts -o mode=620 pts /root/dev/pts
mount -t tmpfs -o nosuid,nodev shm /root/dev/shm
mount -t tmpfs -o mode=755,nosuid,nodev run /root/run
mount -t tmpfs -o nosuid,nodev tmp /root/tmp
mkdir -p /root/run/pkernfs-lab /root/mnt/pkernfs /root/mnt/scratch /root/mnt/share
ln -s /proc/self/fd /root/dev/fd
ln -s fd/0 /root/dev/stdin
ln -s fd/1 /root/dev/stdout
ln -s fd/2 /root/dev/stderr

state=/root/run/pkernfs-lab
mount -t ext4 -o noatime /root/dev/vdc /root/mnt/scratch && : >$state/has-scratch
if [ $store = yes ] && mount -t pkernfs -o $option none /root/mnt/pkernfs 2>/dev/null; then
	: >$state/has-store
fi
exec switch_root /root /usr/lib/pkernfs-lab/host-init.sh
