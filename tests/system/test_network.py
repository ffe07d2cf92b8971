# SPDX-License-Identifier: GPL-2.0-only
"""A guest on a bridge of its host: its tap ends with the kernel, its network does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pkernfs.lab import demo, guest
from pkernfs.lab.machine import Machine
from tests.answers import answers
from tests.conftest import HostFactory

pytestmark = [pytest.mark.system, pytest.mark.kvm, pytest.mark.timeout(900)]

_ADDRESS, _PORT = "10.0.2.15", 5000
_MAKE_BRIDGE = (
    "ip link add br0 type bridge vlan_filtering 1"
    " && bridge vlan add dev br0 vid 7 self pvid untagged && bridge vlan del dev br0 vid 1 self"
    " && ip address add 10.0.2.2/24 dev br0 && ip link set br0 up"
)
#: What an administrator set on the guest's port.
_SET_PORT = (
    "ip link set tap0 mtu 1400 master br0 && bridge vlan del dev tap0 vid 1"
    " && bridge vlan add dev tap0 vid 7 pvid untagged && bridge vlan add dev tap0 vid 20-29"
    " && bridge link set dev tap0 guard on && ip link set tap0 up"
)
#: Says something and hears it again.
_TALK = f"""
import socket
with socket.create_connection(("{_ADDRESS}", {_PORT}), timeout=60) as talk:
    talk.sendall(b"x" * 1024)
    got = b""
    while len(got) < 1024:
        got += talk.recv(1024)
"""


def _port(host: Machine) -> dict[str, Any]:
    """All that can be seen of the guest's port."""
    link = json.loads(host.sh("ip -j -d link show dev tap0").check().stdout)[0]
    vlans = json.loads(host.sh("bridge -j vlan show dev tap0").check().stdout)
    data = link["linkinfo"]["info_slave_data"]
    return {
        "vlans": vlans,
        "guard": data["guard"],
        "up": "UP" in link["flags"],
        **{name: link.get(name) for name in ("mtu", "master", "address")},
    }


@answers(
    phase="resume",
    failure="a guest's tap was on a bridge that the next kernel has not made yet",
    outcome="the guest runs; said; pkernfs vm network (a unit waits with it) puts the tap back as "
    "it was: bridge, VLANs, settings, address",
)
def test_a_tap_comes_back_onto_its_bridge(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    host.sh(_MAKE_BRIDGE).check()
    config = guest.GuestConfig(
        program="nic",
        words="share=0.2 ring=0",
        extra=(
            *("-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"),
            *("-device", "e1000e,netdev=net"),
        ),
    )
    witness = guest.start(host, config)
    witness.wait_ready()
    host.sh(_SET_PORT).check()
    host.run(["python3", "-c", _TALK], timeout=90).check()
    before = _port(host)
    proof = witness.prove()

    assert host.run(["pkernfs", "update"]).status is None
    assert host.wait_reboot().resume == 0
    assert "tap0 waits for the bridge br0" in host.sh("cat /run/pkernfs-lab/resume.log").stdout
    waits = host.run(["pkernfs", "vm", "network"])
    assert waits.status == 1, waits
    (network,) = demo.report_of(host)["vms"][0]["network"]
    assert (network["state"], network["dark_s"]) == ("waits", None)

    # The host's network comes up, and the unit's command has waited for it.
    waiting = f"pkernfs vm network --wait 60 --json >/tmp/done & {_MAKE_BRIDGE}; wait $!"
    host.sh(waiting, timeout=90).check()
    done = json.loads(host.sh("cat /tmp/done").check().stdout)["interfaces"]
    assert [(each["interface"], each["state"]) for each in done] == [("tap0", "back")]
    assert _port(host) == before
    host.run(["python3", "-c", _TALK], timeout=90).check()
    (network,) = demo.report_of(host)["vms"][0]["network"]
    assert (network["interface"], network["bridge"], network["state"]) == ("tap0", "br0", "back")
    assert network["dark_s"] > demo.report_of(host)["vms"][0]["blackout_s"]
    after = witness.prove()
    assert (after.boot, after.pid, after.digest) == (proof.boot, proof.pid, proof.digest)
