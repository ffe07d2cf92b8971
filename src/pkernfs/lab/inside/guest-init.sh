#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# First program of a lab guest: a disk, then the program that the boot line names.

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmp /dev/shm
mount -t tmpfs tmp /tmp
for pair in $(cat /proc/cmdline); do
	case $pair in
	share=*) share=${pair#*=} ;;
	seconds=*) seconds=${pair#*=} ;;
	ring=*) ring=${pair#*=} ;;
	intmode=*) intmode=${pair#*=} ;;
	esac
done
for module in $(cat /modules/order); do
	parameters=
	case $module in e1000e.*) parameters=${intmode:+IntMode=$intmode} ;; esac
	insmod "/modules/$module" $parameters 2>/dev/null
done

export PATH=/bin:/usr/bin LANG=C.UTF-8
if [ -x /usr/bin/stress-ng ]; then
	echo '{"ready": "stress"}'
	stress-ng --vm 2 --vm-bytes "${share:-60%}" --vm-keep --verify --timeout "${seconds:-60}" \
		--temp-path /tmp --metrics-brief --stdout
	echo "{\"stress\": $?}"
else
	# Not the first program: a process id that means something.
	program=/witness.py
	[ -f /nic_witness.py ] && program=/nic_witness.py
	PYTHONHOME=/usr python3.13 -I -S $program "${share:-0.8}" "${ring:-0}"
fi
echo "{\"ended\": $?}"
exec sleep 1000000
