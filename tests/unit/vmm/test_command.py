# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's command line."""

from __future__ import annotations

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.vmm import command
from pkernfs.vmm.config import GuestConfig, check_name
from tests.answers import answers


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "1G"],
        ["--m", "1G"],
        ["-qmp", "unix:/x"],
        ["-object", "memory-backend-ram,id=a,size=1G"],
        ["-object", '{"qom-type":"memory-backend-memfd","id":"a"}'],
        ["-object", "memory-backend-file,id=a,size=1G,mem-path=/x,share=on,discard-data=on"],
        ["-machine", "q35,memory-backend=a"],
        ["-M", "q35,memory-backend=a"],
        ["-incoming", "defer", "-S"],
        ["-daemonize"],
        ["-snapshot"],
        ["-S"],
        ["-nographic"],
        ["-serial", "stdio"],
        ["-serial", "mon:stdio"],
        ["-chardev", "stdio,id=a"],
        ["-device", "vfio-pci,host=01:00.0"],
        ["-device", '{"driver":"vfio-pci"}'],
    ],
)
def test_what_can_not_work_is_refused_with_advice(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        command.check_arguments(["-smp", "2", *arguments])
    assert error.value.hint
    assert error.value.status == 2


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("-chardev", "socket,id=a,path=/var/lib/a,server=on", "wait=off"),
        ("-chardev", "socket,id=a,port=1,host=::1,server=on,wait=on", "wait=off"),
        ("-chardev", '{"id":"a","backend":{"data":{"server": true}}}', "wait=off"),
        ("-serial", "tcp::4444,server", "wait=off"),
        ("-monitor", "unix:/var/lib/m,server=on", "wait=off"),
        ("-device", "vhost-user-fs-pci,chardev=c,tag=t", "other half"),
        ("-device", '{"driver":"vhost-user-blk-pci"}', "other half"),
        ("-netdev", "vhost-user,id=n,chardev=c", "other half"),
        ("-netdev", "stream,id=n,addr.type=unix,addr.path=/var/lib/passt", "other half"),
        ("-tpmdev", "emulator,id=t,chardev=c", "other half"),
        ("-object", "pr-manager-helper,id=p,path=/run/p", "other half"),
        ("-run-with", "user=nobody", "root"),
        ("-run-with", "async-teardown=on,chroot=/srv", "root"),
        ("-runas", "nobody", "root"),
        ("-readconfig", "f", "checked"),
        ("-set", "object.pkernfs-ram.discard-data=on", "empty"),
        ("-drive", "file=/tmp/a.img,if=virtio", "onto a disk"),
        ("-blockdev", '{"driver":"file","filename":"/run/a.img"}', "onto a disk"),
        ("-kernel", "/dev/shm/vmlinuz", "onto a disk"),
        ("-device", "id=f,driver=vhost-user-fs-pci,chardev=c", "other half"),
        ("-device", "ivshmem-doorbell,chardev=c", "other half"),
        ("-netdev", "id=n,type=vhost-user,chardev=c", "other half"),
        ("-netdev", '{"type":"stream","id":"n","addr":{"type":"unix","path":"/x"}}', "other half"),
        ("-netdev", "vde,id=n,sock=/var/lib/vde", "other half"),
        ("-nic", "vhost-user,chardev=c", "other half"),
        ("-tpmdev", "id=t,type=emulator,chardev=c", "other half"),
        ("-chardev", "socket,id=c,path=/var/lib/peer", "other half"),
        ("-chardev", "socket,id=c,path=/var/lib/peer,reconnect-ms=0", "other half"),
        (
            "-chardev",
            '{"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix",'
            '"data":{"path":"/x"}},"server":false}}}',
            "other half",
        ),
        ("-device", "virtio-net-pci,netdev=n,romfile=/tmp/rom", "onto a disk"),
        ("-device", "loader,file=/run/a.elf", "onto a disk"),
        ("-drive", "driver=qcow2,file.driver=file,file.filename=/tmp/a", "onto a disk"),
        ("-drive", "driver=qcow2,file.filename=/x,backing.file.filename=/dev/shm/b", "onto a disk"),
        ("-hda", "file:/tmp/a.img", "onto a disk"),
        ("-option-rom", "/tmp/rom", "onto a disk"),
        ("-acpitable", "file=/tmp/dsdt", "onto a disk"),
        ("-fw_cfg", "name=opt/a,file=/run/a", "onto a disk"),
        ("-virtfs", "local,path=/tmp/share,mount_tag=t,security_model=none", "onto a disk"),
        ("-object", "tls-creds-x509,id=t,endpoint=server,dir=/run/tls", "onto a disk"),
    ],
)
def test_what_ends_with_the_kernel_or_waits_is_refused(option: str, value: str, word: str) -> None:
    with pytest.raises(UsageError) as error:
        command.check_arguments(["-smp", "2", option, value])
    assert word in error.value.hint


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("-chardev", "socket,id=a,path=/run/a,server=on,wait=off"),
        ("-chardev", "socket,id=a,path=/run/a,server,nowait"),
        ("-chardev", "socket,id=a,path=/run/server,reconnect-ms=1000"),
        ("-chardev", "socket,id=a,host=::1,port=7"),
        ("-chardev", "socket,id=a,fd=7"),
        ("-device", "vhost-vsock-pci,guest-cid=5"),
        ("-netdev", "vhost-vdpa,id=n,vhostdev=/dev/vhost-vdpa-0"),
        ("-nic", "user,model=virtio"),
        ("-fw_cfg", "name=opt/a,string=/tmp/not-a-file"),
        ("-chardev", '{"data":{"server": true, "wait": false}}'),
        ("-serial", "telnet::4444,server=on,wait=off"),
        ("-chardev", "file,id=l,path=/tmp/log,append=on"),
        ("-netdev", "tap,id=n,ifname=tap0,vhost=on"),
        ("-netdev", "dgram,id=n,local.type=inet,local.host=::1,local.port=1"),
        ("-run-with", "async-teardown=on"),
        ("-drive", "file=/srv/tmp/a.img,if=virtio"),
    ],
)
def test_what_outlives_the_kernel_passes(option: str, value: str) -> None:
    command.check_arguments([option, value])


def test_an_image_without_an_option_is_looked_at_too() -> None:
    with pytest.raises(UsageError, match="empty in the next kernel"):
        command.check_arguments(["-smp", "2", "/tmp/disk.img"])


def test_ordinary_arguments_pass() -> None:
    ordinary = "-smp 2 -drive file=a,if=virtio -serial file:x -machine q35 -device virtio-rng-pci"
    command.check_arguments(ordinary.split())
    command.check_direct_io(ordinary.split())


@pytest.mark.parametrize(
    "value",
    [
        "file=d,if=virtio,cache=none",
        "cache=directsync,file=d",
        "file=d,cache.direct=on",
        "driver=raw,file.driver=file,file.filename=d,file.cache.direct=on",
        "file=d,aio=native",
        '{"driver":"file","filename":"d","cache":{"direct": true}}',
        '{"driver":"file","filename":"d","aio":"native"}',
    ],
)
def test_o_direct_is_found_however_it_is_written(value: str) -> None:
    with pytest.raises(UsageError, match="O_DIRECT") as error:
        command.check_direct_io(["-smp", "1", "-drive", value])
    assert "cache=writeback" in error.value.hint


@pytest.mark.parametrize(
    "value", ["file=d,cache=writeback", "file=d,cache.direct=off", "file=none"]
)
def test_buffered_disks_pass(value: str) -> None:
    command.check_direct_io(["-drive", value])


def test_the_user_s_words_come_last_and_ours_are_not_doubled() -> None:
    user = ["-accel", "tcg", "-M", "pc", "-enable-kvm", "-smp", "2", "-cpu", "qemu64"]
    arguments = command.base_arguments("g", "/s/a,b/ram", 2 << 30, "pc-q35-11.1", "kvm", user)
    text = " ".join(arguments)
    assert "mem-path=/s/a,,b/ram,share=on,align=1073741824" in text
    assert text.count("-accel") == text.count("-machine") == text.count("-cpu") == 1
    assert "-machine pc-q35-11.1,memory-backend=pkernfs-ram -accel kvm" in text
    assert "-enable-kvm" not in text
    assert text.endswith("-display none -smp 2 -cpu qemu64")


def test_alignment_follows_the_size() -> None:
    assert command.alignment(64 << 20) == 2 << 20
    assert command.alignment(1 << 30) == 1 << 30


@pytest.mark.parametrize(("version", "word"), [("10.0.13", "-mon"), ("11.1.0", "-object")])
def test_the_monitor_s_option_is_the_one_this_qemu_wants(version: str, word: str) -> None:
    config = GuestConfig("g", 1, "/q", version, "m", ("-x",), "/")
    line = command.start_arguments(config, 7, incoming=True)
    assert line[:2] == ["/q", "-x"]
    assert "fd=7" in line[3]
    assert line[4] == word
    assert line[-3:] == ["-incoming", "defer", "-S"]
    assert "-incoming" not in command.start_arguments(config, 7, incoming=False)


@answers(
    phase="input",
    failure="a name that a guest can't have",
    outcome="refused with exit status 2",
)
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "x" * 49, "ä", ".hidden"])
def test_names_that_a_guest_can_not_have(name: str) -> None:
    with pytest.raises(PkernfsError):
        check_name(name)
