#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# A lab host from the root file system on: store, resume, share, agent. In this order,
# because after a kexec a paused guest waits for the first two; and few processes,
# because under emulation each one costs it some hundredths of a second.
#
# Runs as the first program, or (host-init.sh service) as a service of systemd.

export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
state=/run/pkernfs-lab

# One thing beside the other where they don't need each other.
[ -e /dev/kvm ] || {
	kvm=kvm_intel
	grep -qm1 '^flags.* svm ' /proc/cpuinfo && kvm=kvm_amd
	modprobe -q $kvm
} &

update= store=yes resume=yes devices= early= watchdog= units=
read -r line </proc/cmdline
for word in $line; do
	case $word in
	pkernfs_update=*) update=${word#*=} ;;
	pkernfs_watchdog=*) watchdog=${word#*=} ;;
	pkernfs_lab_store=*) store=${word#*=} ;;
	pkernfs_lab_resume=*) resume=${word#*=} ;;
	pkernfs_lab_units=*) units=${word#*=} ;;
	pkernfs_lab_early=*) early=${word#*=} ;;
	elfcorehdr=*) devices=${word#*=} ;;
	esac
done

try() { # try WHAT COMMAND...: note a failure for the lab, go on
	what=$1
	shift
	"$@" 2>$state/error && return
	{
		echo "$what failed:"
		cat $state/error
	} >>$state/problems
}

if [ "$1" = service ]; then
	mkdir -p $state /mnt/pkernfs /mnt/scratch /mnt/share
fi
if [ -n "$units" ]; then
	# Done by units of packaging/systemd, before this.
	store=no resume=no
	[ -z "$update" ] || {
		journalctl --no-pager -o cat -u pkernfs-resume.service >$state/resume.log
		systemctl show --value -p ExecMainStatus pkernfs-resume.service >$state/resume.status
	}
fi
[ -e $state/has-scratch ] || [ -n "$units" ] || try "mounting the scratch disk" mount -t ext4 -o noatime /dev/vdc /mnt/scratch
if [ "$store" = yes ] && [ ! -e $state/has-store ]; then
	try "loading pkernfs" modprobe pkernfs
fi
if [ "$store" = yes ]; then
	# Those that the kernel before handed over, ahead of the drivers of this one.
	# A crash kernel has an elfcorehdr= too, and inherits no device.
	[ -n "$update" ] && [ -n "$devices" ] && try "taking devices over" modprobe pkernfs_dma
	# A range that was never used gets a store; after an update it must hold one.
	option=init
	[ -n "$update" ] && option=defaults
	[ -e $state/has-store ] || try "mounting the store" mount -t pkernfs -o $option none /mnt/pkernfs
	# Those of further regions; after an update pkernfs resume mounts them.
	set -- "$1" /sys/fs/pkernfs/*
	[ $# -gt 2 ] && [ -z "$update" ] && try "mounting all stores" pkernfs mount --init
fi
wait
# Not at once, and in what the processor has to spare: a guest waits for resume.
[ -n "$watchdog" ] && [ "$1" != service ] && {
	sleep 15
	chrt --idle 0 pkernfs watchdog >$state/watchdog.log 2>&1
} &
if [ -n "$update" ] && [ "$resume" = yes ]; then
	pkernfs resume >$state/resume.log 2>&1
	echo $? >$state/resume.status
fi
# What others run where pkernfs resumes its guests (bench/peers).
[ -x "$early" ] && try "running $early" "$early"

if [ "$1" != service ]; then
	ip link set lo up
	echo lab-host >/proc/sys/kernel/hostname
fi
modprobe -qa virtio_console 9pnet_virtio 9p tun
try "mounting the share" mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /mnt/share

while :; do
	python3 -I -S /usr/lib/pkernfs-lab/agent.py
	sleep 1
done
