# SPDX-License-Identifier: GPL-2.0-only
"""What of a guest does not outlive its host's kernel: one table.

It holds for guests that are started here and for those that are adopted. Each entry is about
properties, so it does not matter whether they stand as ``word,key=value`` or as JSON, nor
whether the first word's name is spelt out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pkernfs.vmm.options import Option, parse

_ENDS = (
    "its other half is a process of this host, which ends with the kernel: what the guest uses has"
    " to be in QEMU itself, a file on a disk, or the kernel's"
)
_GONE_HINT = "put it onto a disk, for example below /var/lib"

#: Emptied at each boot (file-hierarchy(7)).
_GONE = re.compile(r"^(\w+:)*(/tmp|/run|/var/run|/dev/shm)/")
#: Options whose whole value is the path of a file that the guest can't do without.
_IMAGES = frozenset(
    {
        *("", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "sd", "pflash", "mtdblock"),
        *("kernel", "initrd", "dtb", "shim", "bios", "option-rom"),
    }
)
#: Options with properties that name files or directories, and those properties' last part.
_NAMING = frozenset(
    {
        *("drive", "blockdev", "device", "object", "acpitable", "fw_cfg", "smbios"),
        *("fsdev", "virtfs", "netdev", "nic"),
    }
)
_NAMES = frozenset({"file", "filename", "romfile", "data", "dir", "path", "tftp", "smb", "x509"})
#: Devices and objects that are served by another program (hw/, backends/, QEMU 11.1).
_SERVED_DEVICE = re.compile(
    r"^(vhost-user-|ivshmem-doorbell|ipmi-bmc-extern|vfio-user-|x-pci-proxy)"
)
_SERVED_OBJECT = frozenset(
    {"pr-manager-helper", "cryptodev-vhost-user", "rng-egd", "x-remote-object", "vfio-user-server"}
)


@dataclass(frozen=True)
class Obstacle:
    """Why a guest with an option can't come back under the next kernel.

    :ivar what: the option, and what is wrong with it.
    :ivar hint: what to write instead.
    """

    what: str
    hint: str


class _Facts:
    """The properties of an option, nested ones by their dotted names."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.flat = option.properties().flat()

    def text(self, *names: str) -> str:
        return next((self.flat[name] for name in names if name in self.flat), "")


def _served_netdev(facts: _Facts) -> bool:
    kind = facts.text("type")
    if kind in ("vhost-user", "vde"):
        return True
    unix = any(k.rpartition(".")[2] == "type" and v == "unix" for k, v in facts.flat.items())
    return (kind in ("stream", "dgram") and unix) or facts.flat.get("vhost-user") == "on"


def _served_chardev(facts: _Facts) -> bool:
    """A socket in this host's files whose server is somebody else, needed at the start."""
    flat = {key.removeprefix("backend.").removeprefix("data."): v for key, v in facts.flat.items()}
    backend = flat.get("backend", flat.get("type", ""))
    path = flat.get("path", flat.get("addr.data.path", flat.get("addr.path", "")))
    serves = flat.get("server", "off") in ("on", "yes", "true", "y")
    again = any(flat.get(key, "0") != "0" for key in ("reconnect", "reconnect-ms"))
    return backend == "socket" and bool(path) and not serves and not again


#: Options, whether one of them needs another process of this host, and what to do about it.
_SERVED: tuple[tuple[frozenset[str], Callable[[_Facts], bool], str], ...] = (
    (
        frozenset({"device"}),
        lambda facts: bool(_SERVED_DEVICE.match(facts.text("driver"))),
        _ENDS,
    ),
    (frozenset({"netdev", "nic", "net"}), _served_netdev, _ENDS),
    (frozenset({"tpmdev"}), lambda facts: facts.text("type") == "emulator", _ENDS),
    (frozenset({"object"}), lambda facts: facts.text("qom-type") in _SERVED_OBJECT, _ENDS),
    (
        frozenset({"chardev"}),
        _served_chardev,
        f"{_ENDS}; or let QEMU be the server (server=on,wait=off), or try again (reconnect-ms=)",
    ),
)


def obstacle(option: Option) -> Obstacle | None:
    """What of an option does not outlive the kernel; None if all of it does."""
    facts = _Facts(option)
    for names, served, hint in _SERVED:
        if option.name in names and served(facts):
            return Obstacle(f"{option} can't be used here", hint)
    for path in _paths(option):
        if _GONE.match(path):
            return Obstacle(f"{option}: this directory is empty in the next kernel", _GONE_HINT)
    return None


def first_obstacle(arguments: Sequence[str]) -> Obstacle | None:
    """The first obstacle in a command line, the program's name left out."""
    return next(filter(None, map(obstacle, parse(arguments))), None)


def _paths(option: Option) -> Iterator[str]:
    """Files and directories that an option can't do without."""
    value = option.value or ""
    if option.name in _IMAGES:
        yield value
    elif option.name in _NAMING:
        for key, text in option.properties().flat().items():
            if key.rpartition(".")[2] in _NAMES:
                yield text
