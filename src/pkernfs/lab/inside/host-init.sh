#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# A lab host from the root file system on: store, resume, share, agent. In this order,
# because after a kexec a paused guest waits for the first two.
#
# Runs as the first program, or (host-init.sh service) as a service of systemd.

export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
state=/run/pkernfs-lab
words=$(cat /proc/cmdline)

word() { # word NAME: the value of NAME= on the boot line
	for pair in $words; do
		case $pair in "$1="*) echo "${pair#*=}"; return ;; esac
	done
}

try() { # try WHAT COMMAND...: note a failure for the lab, go on
	what=$1
	shift
	output=$("$@" 2>&1) || echo "$what failed: $output" >>$state/problems
}

if [ "$1" != service ]; then
	mount -t tmpfs -o mode=755,nosuid,nodev run /run
	mkdir -p /dev/pts /dev/shm
	mount -t devpts -o mode=620 pts /dev/pts
	mount -t tmpfs -o nosuid,nodev shm /dev/shm
	mount -t tmpfs -o nosuid,nodev tmp /tmp
	ip link set lo up
	echo lab-host >/proc/sys/kernel/hostname
fi
mkdir -p $state /mnt/pkernfs /mnt/scratch /mnt/share
update=$(word pkernfs_update)

# One thing beside the other where they don't need each other.
kvm=kvm_intel
grep -qm1 '^flags.* svm ' /proc/cpuinfo && kvm=kvm_amd
modprobe -q $kvm &
if [ "$(word pkernfs_lab_store)" != no ]; then
	{
		try "loading pkernfs" modprobe pkernfs
		# A range that was never used is all zero; after an update it must hold a store.
		option=init
		[ -n "$update" ] && option=defaults
		try "mounting the store" mount -t pkernfs -o $option none /mnt/pkernfs
	} &
fi
try "mounting the scratch disk" mount -t ext4 -o noatime /dev/vdc /mnt/scratch
wait
if [ -n "$update" ] && [ "$(word pkernfs_lab_resume)" != no ]; then
	pkernfs resume >$state/resume.log 2>&1
	echo $? >$state/resume.status
fi

modprobe -qa virtio_console 9pnet_virtio 9p tun
try "mounting the share" mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /mnt/share

while :; do
	python3 -I -S /usr/lib/pkernfs-lab/agent.py
	sleep 1
done
