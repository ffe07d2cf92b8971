# SPDX-License-Identifier: GPL-2.0-only
"""Interfaces of guests as ports of bridges, on a tree of files and with recorded commands."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import ports
from pkernfs.host.machine import Machine
from pkernfs.host.ports import Port, State

_VLANS: list[dict[str, object]] = [
    {"vlan": 7, "flags": ["PVID", "Egress Untagged"]},
    {"vlan": 20, "vlanEnd": 29},
]


@dataclass
class Net:
    """/sys/class/net, and what ip and bridge were told."""

    root: Path
    said: list[str] = field(default_factory=list)
    vlans: list[dict[str, object]] = field(default_factory=list)
    fails: str = ""

    @property
    def machine(self) -> Machine:
        """The host that has it."""
        return Machine(self.root)

    def interface(self, name: str, flags: str = "0x1002", master: str = "", **port: str) -> None:
        """Have an interface."""
        home = self.root / "sys/class/net" / name
        home.mkdir(parents=True)
        for file, text in {"flags": flags, "mtu": "1400", "address": "fe:1"}.items():
            (home / file).write_text(text + "\n")
        if master:
            (home / "master").symlink_to(f"../{master}")
            (home / "brport").mkdir()
        for file, text in port.items():
            (home / "brport" / file).write_text(text + "\n")

    def bridge(self, name: str, filtering: str = "0") -> None:
        """Have a bridge."""
        home = self.root / "sys/class/net" / name / "bridge"
        home.mkdir(parents=True)
        (home / "bridge_id").write_text("8000.0\n")
        (home / "vlan_filtering").write_text(filtering + "\n")

    def run(self, *command: str) -> str:
        """Instead of ip and bridge."""
        line = " ".join(command)
        if self.fails and self.fails in line:
            raise PkernfsError(f"{line}: no")
        if line.startswith("bridge -j vlan show"):
            return json.dumps([{"ifname": command[-1], "vlans": self.vlans}])
        self.said.append(line)
        if " master " in line:
            home = self.root / "sys/class/net" / command[4]
            (home / "master").symlink_to(f"../{command[-1]}")
            (home / "brport").mkdir()
            (home / "brport/isolated").write_text("0\n")
            self.vlans = [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}]
        return ""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    found = Net(tmp_path)
    monkeypatch.setattr(ports, "_run", found.run)
    return found


def _port(net: Net) -> Port:
    """What an update notes of a port with all that can be set."""
    net.bridge("br0", "1")
    net.interface("tap0", "0x1003", "br0", isolated="1", learning="1")
    net.vlans = [*_VLANS]
    port = ports.read(net.machine, "tap0")
    assert port is not None
    return port


def test_what_is_set_is_read(net: Net) -> None:
    port = _port(net)
    settings = {"isolated": "1", "learning": "1"}
    assert port == Port("tap0", "br0", True, 1400, "fe:1", settings, ("7 pvid untagged", "20-29"))
    assert Port.of(json.loads(json.dumps(dataclasses.asdict(port)))) == port
    assert ports.read(net.machine, "tap1") is None


def test_all_is_set_again_and_it_comes_up_last(net: Net, tmp_path: Path) -> None:
    port = _port(net)
    fresh = Net(tmp_path / "next")
    fresh.bridge("br0", "1")
    fresh.interface("tap0")
    net.root, net.vlans, net.said = fresh.root, [], []
    assert not ports.is_back(net.machine, port)
    assert ports.restore(net.machine, port) is State.BACK
    link = "ip link set dev tap0"
    assert net.said == [
        f"{link} down",
        f"{link} address fe:1",
        f"{link} mtu 1400",
        f"{link} master br0",
        "bridge vlan del dev tap0 vid 1",
        "bridge vlan add dev tap0 vid 7 pvid untagged",
        "bridge vlan add dev tap0 vid 20-29",
        f"{link} up",
    ]
    assert (net.root / "sys/class/net/tap0/brport/isolated").read_text() == "1"


def test_a_bridge_that_is_not_there_is_waited_for(net: Net) -> None:
    net.interface("tap0")
    port = Port("tap0", "br0", up=True)
    assert ports.restore(net.machine, port) is State.WAITS
    assert net.said == []


def test_another_bridge_is_somebody_s_decision(net: Net) -> None:
    net.bridge("br1")
    net.interface("tap0", master="br1")
    assert ports.restore(net.machine, Port("tap0", "br0", up=True)) is State.ELSEWHERE
    assert net.said == []
    assert ports.restore(net.machine, Port("tap9", "br0")) is State.GONE


def test_open_vswitch_takes_its_port_back_by_itself(net: Net) -> None:
    net.interface("tap0")
    port = Port("tap0", "ovs-system", up=True)
    assert ports.restore(net.machine, port) is State.BACK
    assert net.said == ["ip link set dev tap0 up"]


def test_what_can_not_be_set_leaves_it_down(net: Net) -> None:
    """Better no network than one that the guest must not see."""
    net.bridge("br0", "1")
    net.interface("tap0")
    net.fails = "vlan add"
    with pytest.raises(PkernfsError, match="vlan add"):
        ports.restore(net.machine, Port("tap0", "br0", up=True, vlans=("7",)))
    assert net.said[-1] == "ip link set dev tap0 nomaster"
