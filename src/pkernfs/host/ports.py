# SPDX-License-Identifier: GPL-2.0-only
"""Guests' network interfaces as ports of this host's bridges: what they are, and put back.

An interface that QEMU makes (a tap) ends with the kernel, and with it everything that was set
on it. Linux bridges are set by iproute2; Open vSwitch keeps its ports in its own database and
takes an interface back by itself as soon as it is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine

_NET = "sys/class/net"
#: The device behind every port of Open vSwitch's kernel datapath.
_OVS = "ovs-system"
_IFF_UP = 1
#: What a bridge keeps of a port (brport_attrs[] in net/bridge/br_sysfs_if.c), as far as it is
#: somebody's decision and can be written.
_SETTINGS = (
    *("path_cost", "priority", "hairpin_mode", "bpdu_guard", "root_block", "learning"),
    *("unicast_flood", "proxyarp", "proxyarp_wifi", "multicast_router", "multicast_fast_leave"),
    *("multicast_flood", "multicast_to_unicast", "broadcast_flood", "neigh_suppress"),
    *("group_fwd_mask", "isolated"),
)


class State(Enum):
    """What became of a port.

    :cvar BACK: it is on its bridge, and up if it was.
    :cvar WAITS: there is no such bridge yet.
    :cvar ELSEWHERE: it is on another bridge; whoever put it there knows better.
    :cvar GONE: there is no such interface.
    """

    BACK = "back"
    WAITS = "waits"
    ELSEWHERE = "elsewhere"
    GONE = "gone"


@dataclass(frozen=True)
class Port:
    """A network interface, and what was set on it.

    :ivar master: name of its bridge; empty if it is on none.
    :ivar mtu: bytes.
    :ivar address: its own hardware address, which is not the guest's.
    :ivar settings: of the bridge's port, by their names in sysfs.
    :ivar vlans: words for ``bridge vlan add``, one VLAN or range of them each.
    """

    interface: str
    master: str = ""
    up: bool = False
    mtu: int = 1500
    address: str = ""
    settings: dict[str, str] = field(default_factory=dict, hash=False)
    vlans: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: dict[str, Any]) -> Port:
        """From JSON."""
        return cls(**{**value, "vlans": tuple(value["vlans"])})


def read(machine: Machine, interface: str) -> Port | None:
    """What is set on an interface; None when there is none of that name.

    :raises PkernfsError: its VLANs can't be found out.
    """
    home = f"{_NET}/{interface}"
    flags = machine.read(f"{home}/flags")
    if flags is None:
        return None
    master = ""
    with contextlib.suppress(OSError):
        master = (machine.root / home / "master").readlink().name
    values = ((name, machine.read(f"{home}/brport/{name}")) for name in _SETTINGS)
    filtering = machine.read(f"{_NET}/{master}/bridge/vlan_filtering") if master else None
    return Port(
        interface,
        master,
        bool(int(flags, 16) & _IFF_UP),
        int(machine.read(f"{home}/mtu") or 1500),
        machine.read(f"{home}/address") or "",
        {name: value for name, value in values if value is not None},
        _vlans(interface) if filtering == "1" else (),
    )


def is_back(machine: Machine, port: Port) -> bool:
    """Is an interface on its bridge, and up if it was?"""
    now = read(machine, port.interface)
    return now is not None and now.master == port.master and now.up >= port.up


def restore(machine: Machine, port: Port) -> State:
    """Make an interface what it was; can be called again.

    It comes up last: until then nothing that it would not have passed on passes.

    :raises PkernfsError: something can't be set; the interface is down then.
    """
    now = read(machine, port.interface)
    if now is None:
        return State.GONE
    bridge = "" if port.master == _OVS else port.master
    if bridge and now.master and now.master != bridge:
        return State.ELSEWHERE
    if bridge and not now.master:
        if machine.read(f"{_NET}/{bridge}/bridge/bridge_id") is None:
            return State.WAITS
        try:
            _put(machine, port)
        except PkernfsError:
            # Half of it would pass for all of it the next time.
            with contextlib.suppress(PkernfsError):
                _run("ip", "link", "set", "dev", port.interface, "nomaster")
            raise
    if port.up:
        _run("ip", "link", "set", "dev", port.interface, "up")
    return State.BACK


def _put(machine: Machine, port: Port) -> None:
    interface = port.interface
    link = ("ip", "link", "set", "dev", interface)
    _run(*link, "down")
    if port.address:
        _run(*link, "address", port.address)
    _run(*link, "mtu", str(port.mtu))
    _run(*link, "master", port.master)
    for name, value in port.settings.items():
        path = machine.root / _NET / interface / "brport" / name
        if machine.read(str(path.relative_to(machine.root))) not in (None, value):
            _write(path, value)
    if port.vlans:
        for words in _vlans(interface):
            _run("bridge", "vlan", "del", "dev", interface, "vid", words.split()[0])
        for words in port.vlans:
            _run("bridge", "vlan", "add", "dev", interface, "vid", *words.split())


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value, encoding="ascii")
    except OSError as error:
        raise PkernfsError(f"{path} can't be set to {value}: {error.strerror}") from error


def _vlans(interface: str) -> tuple[str, ...]:
    """What ``bridge vlan`` knows of an interface, as words for ``bridge vlan add``."""
    text = _run("bridge", "-j", "vlan", "show", "dev", interface)
    ports = json.loads(text) if text.strip() else []
    return tuple(_vlan(vlan) for port in ports for vlan in port.get("vlans", ()))


def _vlan(vlan: dict[str, Any]) -> str:
    first, last = vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"])
    flags = {"PVID": "pvid", "Egress Untagged": "untagged"}
    words = [flags[flag] for flag in vlan.get("flags", ()) if flag in flags]
    return " ".join([str(first) if first == last else f"{first}-{last}", *words])


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PkernfsError(f"{command[0]} can't be run: {error}", "install iproute2") from error
    if done.returncode:
        raise PkernfsError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
