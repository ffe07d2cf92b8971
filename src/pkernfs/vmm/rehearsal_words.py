# SPDX-License-Identifier: GPL-2.0-only
"""The command line of a successor that is only tried: the same machine, attached to nothing.

The guest runs on meanwhile, and owns what its command line names: its memory, its tap
interfaces, sockets and logs, its passed-through devices. Those are replaced by something of the
same name that reaches nothing outside of the process. Disk images stay: a QEMU that waits for
a saved state opens them inactive (BDRV_O_INACTIVE, blockdev_init() in blockdev.c), takes no
lock on them, and can't write to them (bdrv_co_write_req_prepare() in block/io.c asserts that).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pkernfs.vmm.living import Contents, Device
from pkernfs.vmm.options import Option, Properties, parse

#: Devices that are somebody's already: what they stand for exists once.
_TAKEN = re.compile(r"vfio-|usb-host$|virtio-input-host|u2f-passthru")
#: What stands where such a device would: without it, QEMU gives its place to the next one.
_STAND_INS = {
    "vfio-pci": "virtio-rng-pci",
    "vfio-pci-nohotplug": "virtio-rng-pci",
    "virtio-input-host-pci": "virtio-rng-pci",
    "usb-host": "usb-mouse",
    "u2f-passthru": "usb-mouse",
}
_STAND_IN_ID = "pkernfs-stand-in-"
#: What says where a device is.
_PLACE = ("bus", "addr", "multifunction", "port")
#: Left out: files of QEMU's own, debuggers, windows, and what would touch all memory.
_LEFT_OUT = frozenset(
    {
        *("D", "d", "trace", "dfilter", "pidfile", "gdb", "s", "daemonize", "vnc", "sdl", "gtk"),
        *("mem-prealloc", "realtime", "nographic", "curses", "S", "incoming"),
    }
)
_LINES = frozenset({"serial", "parallel", "monitor", "debugcon", "qmp", "qmp-pretty"})
_HARMLESS_LINES = re.compile(r"(chardev:.*|none|null|vc(:.*)?)$")
#: What a network card keeps of its -nic, beside its network.
_CARD = ("model", "mac", "macaddr", "id", "name", "addr", "vectors")


@dataclass(frozen=True)
class Words:
    """What to start.

    :ivar arguments: QEMU's, without the program.
    :ivar taken: devices that are left out because the running guest has them.
    """

    arguments: tuple[str, ...]
    taken: tuple[Device, ...]

    def complete(self, found: Contents, running: Contents) -> Contents:
        """What the successor will have: what was found, and what could not be tried.

        :param running: what the running QEMU has.
        """
        if not self.taken:
            return found
        # Where they are, and what memory they have, is not known: taken as it is.
        untold = list(self.taken)
        devices = [it for it in found.devices if not it.name.startswith(_STAND_IN_ID)]
        for device in running.devices:
            match = Device(device.name, device.kind)
            if match in untold:
                untold.remove(match)
                devices.append(device)
        blocks = {name: it for name, it in running.blocks.items() if name not in found.blocks}
        return replace(found, devices=(*devices, *untold), blocks={**found.blocks, **blocks})


def rehearsed(arguments: Sequence[str], scratch: Path) -> Words:
    """Detach a command line from everything that the running guest owns.

    :param arguments: of the successor, without the program.
    :param scratch: directory for a socket that can't be left out.
    """
    return _Writer(scratch).write(parse(arguments))


class _Writer:
    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._networks = 0
        self._taken: list[Device] = []
        self._tpms: set[str] = set()

    def write(self, options: Sequence[Option]) -> Words:
        self._tpms = {
            option.properties().text("id")
            for option in options
            if option.name == "tpmdev" and option.properties().text("type") == "passthrough"
        }
        kept = [new for option in options if (new := self._one(option)) is not None]
        if not any(option.name == "display" for option in kept):
            kept.append(Option("display", "none"))
        words = tuple(word for option in kept for word in option.words())
        return Words(words, tuple(self._taken))

    def _one(self, option: Option) -> Option | None:
        if option.name in _LEFT_OUT:
            return None
        if option.name in _LINES:
            return self._line(option)
        handler = {
            "chardev": self._chardev,
            "netdev": self._netdev,
            "nic": self._nic,
            "net": self._nic,
            "object": self._object,
            "device": self._device,
            "display": self._display,
            "spice": self._spice,
            "audiodev": self._audio,
            "audio": self._audio,
            "tpmdev": self._tpmdev,
            "set": self._set,
            "overcommit": self._overcommit,
        }.get(option.name)
        return handler(option) if handler is not None else option

    def _line(self, option: Option) -> Option:
        value = option.value or ""
        if _HARMLESS_LINES.match(value):
            return option
        return Option(option.name, "mon:null" if value.startswith("mon:") else "null")

    def _chardev(self, option: Option) -> Option:
        old = option.properties()
        shared = {"mux": old.items["mux"]} if "mux" in old.items else {}
        items = {"backend": "null", "id": old.text("id"), **shared}
        return option.having(Properties(items, "backend"))

    def _netdev(self, option: Option) -> Option:
        self._networks += 1
        items = {"type": "hubport", "id": option.properties().text("id"), "hubid": self._networks}
        return option.having(Properties(items, "type"))

    def _nic(self, option: Option) -> Option:
        old = Properties.parse(option.value or "", "type")
        if old.text("type") in ("none", "nic"):
            return option
        items = {"type": "user", "restrict": "on", **_some(old, *_CARD)}
        return option.having(Properties(items, "type"))

    def _object(self, option: Option) -> Option | None:
        old = option.properties()
        kind = old.text("qom-type")
        if kind in ("memory-backend-file", "memory-backend-memfd", "memory-backend-ram"):
            return option.having(_scratch_memory(old))
        if kind == "input-linux":
            return None
        if kind == "filter-dump":
            return option.having(old.having(file="/dev/null"))
        return option

    def _device(self, option: Option) -> Option | None:
        properties = option.properties()
        driver, name = properties.text("driver"), properties.text("id")
        if _TAKEN.match(driver) or properties.text("tpmdev") in self._tpms:
            self._taken.append(Device(name, driver))
            return self._stand_in(option, driver)
        return option

    def _stand_in(self, option: Option, driver: str) -> Option | None:
        """Something else in the place of a device, by a name that no guest gives."""
        if driver not in _STAND_INS:
            return None
        old = option.properties()
        own = {"driver": _STAND_INS[driver], "id": f"{_STAND_IN_ID}{len(self._taken)}"}
        return option.having(Properties({**own, **_some(old, *_PLACE)}, "driver", old.as_json))

    def _display(self, option: Option) -> Option | None:
        # What a card with 3D acceleration needs to be there at all.
        return option if (option.value or "").startswith("egl-headless") else None

    def _spice(self, option: Option) -> Option:
        socket = str(self._scratch / "spice.sock")
        items = {"unix": "on", "addr": socket, "disable-ticketing": "on"}
        return option.having(Properties(items))

    def _audio(self, option: Option) -> Option:
        old = Properties.parse(option.value or "", "driver")
        items = _some(old, "id", "model")
        return option.having(Properties({"driver": "none", **items}, "driver", old.as_json))

    def _tpmdev(self, option: Option) -> Option | None:
        return None if option.properties().text("id") in self._tpms else option

    def _overcommit(self, option: Option) -> Option | None:
        """Without locking memory; the rest decides what the processor can have."""
        kept = option.properties().without("mem-lock")
        return option.having(kept) if kept.items else None

    def _set(self, option: Option) -> Option | None:
        """Properties of memory, which is made of something else here."""
        return None if (option.value or "").startswith("object.") else option


def _scratch_memory(old: Properties) -> Properties:
    """Memory of the same name and size that takes none of the host's until it is written."""
    items = _some(old, "id", "size", "share")
    kept = Properties({"qom-type": "memory-backend-ram", **items}, "qom-type", old.as_json)
    return kept.having(reserve=False)


def _some(properties: Properties, *names: str) -> dict[str, Any]:
    return {name: properties.items[name] for name in names if name in properties.items}
