# SPDX-License-Identifier: GPL-2.0-only
"""The verbs of the lab: virtual hosts to try, demonstrate and test live updates on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pkernfs.errors import UsageError
from pkernfs.lab.hardware import HARDWARE
from pkernfs.lab.qemu import IOMMUS

if TYPE_CHECKING:
    from pkernfs.lab.machine import HostConfig
    from pkernfs.lab.memory import Layout

_Kernel = Annotated[
    str, typer.Option("--kernel", metavar="NAME", help="Kernel to boot: 6.12, 7.3, or debug.")
]
_Region = Annotated[
    str, typer.Option("--region", metavar="SIZE", help="Size of the range for pkernfs; 0: none.")
]
_Nodes = Annotated[
    int, typer.Option("--nodes", metavar="N", min=1, help="NUMA nodes, each with such a range.")
]
_Share = Annotated[
    Path | None, typer.Option("--share", metavar="DIR", help="Directory to see as /mnt/share.")
]
_Ram = Annotated[
    str | None, typer.Option("--ram", metavar="SIZE", help="RAM of the host; 2G and the region.")
]
_Append = Annotated[str, typer.Option("--append", metavar="TEXT", help="More boot line words.")]
_Systemd = Annotated[bool, typer.Option("--systemd", help="Boot with systemd.")]
_Kvm = Annotated[
    bool,
    typer.Option("--kvm", help="Guests run under KVM, on one processor; not emulated, on two."),
]
_Cpus = Annotated[
    int | None,
    typer.Option("--cpus", metavar="N", min=1, help="Virtual processors of the host."),
]
_Iommu = Annotated[
    str, typer.Option("--iommu", metavar="NAME", help=f"IOMMU: {', '.join(IOMMUS)}.")
]
_Device = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help=f"A device of the host, may be given again: {', '.join(HARDWARE)}.",
    ),
]
_Zeroed = Annotated[
    bool, typer.Option("--zeroed", help="Memory starts as zeros, not full of junk.")
]
_Installed = Annotated[
    bool,
    typer.Option("--installed", help="An ordinary Debian host, by GRUB from a disk of its own."),
]
_NoStore = Annotated[bool, typer.Option("--no-store", help="Do not load and mount pkernfs.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    lab = typer.Typer(
        name="lab", help="Virtual hosts: image, run, shell, demo.", no_args_is_help=True
    )
    lab.command("image")(image)
    lab.command("run", context_settings={"allow_interspersed_args": False})(run)
    lab.command("shell")(shell)
    lab.command("demo")(demo)
    app.add_typer(lab)


def image(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew.")] = False,
    installed: Annotated[
        bool, typer.Option("--installed", help="And the disk of an installed host.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the Debian 13 host image, or say that it is there."""
    from pkernfs.lab import image as images

    made = images.host_image(rebuild=rebuild)
    value = {"image": str(made.disk), "kernels": list(made.kernels)}
    if installed:
        from pkernfs.lab import installed as hosts

        value["installed"] = str(hosts.disk(made, rebuild=rebuild).file)
    if as_json:
        import json

        print(json.dumps({"schema": "pkernfs-lab-image/1", **value}, indent=1))
        return
    print(f"image: {made.disk}")
    print(f"kernels: {' '.join(made.kernels)}")
    if installed:
        print(f"installed: {value['installed']}")


def run(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="Runs as root.")],
    kernel: _Kernel = "6.12",
    region: _Region = "1G",
    share: _Share = None,
    ram: _Ram = None,
    nodes: _Nodes = 1,
    append: _Append = "",
    systemd: _Systemd = False,
    no_store: _NoStore = False,
    kvm: _Kvm = False,
    cpus: _Cpus = None,
    iommu: _Iommu = "vtd",
    device: _Device = None,
    zeroed: _Zeroed = False,
    installed: _Installed = False,
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds for CMD.")] = 1800,
) -> None:
    """Boot a host with pkernfs at /mnt/pkernfs, run CMD in it, exit with its status.

    With --installed nothing is done for pkernfs but installing it: no range, no store.
    """
    from pkernfs.lab import session

    layout = _layout(region, ram, nodes)
    config = _config(
        kernel,
        layout,
        share,
        append,
        systemd,
        no_store,
        kvm,
        cpus,
        iommu,
        device,
        zeroed,
        installed,
    )
    sys.exit(session.run_command(config, command, timeout))


def shell(
    kernel: _Kernel = "6.12",
    region: _Region = "1G",
    share: _Share = None,
    ram: _Ram = None,
    nodes: _Nodes = 1,
    append: _Append = "",
    systemd: _Systemd = False,
    no_store: _NoStore = False,
    kvm: _Kvm = False,
    cpus: _Cpus = None,
    iommu: _Iommu = "vtd",
    device: _Device = None,
    zeroed: _Zeroed = False,
    installed: _Installed = False,
) -> None:
    """Boot a host and work in it. Survives a live update; the host ends with the shell."""
    from pkernfs.lab import session

    layout = _layout(region, ram, nodes)
    config = _config(
        kernel,
        layout,
        share,
        append,
        systemd,
        no_store,
        kvm,
        cpus,
        iommu,
        device,
        zeroed,
        installed,
    )
    session.shell(config)


def demo(
    kernel: _Kernel = "6.12",
    target: Annotated[
        str, typer.Option("--to", metavar="NAME", help="Kernel that replaces it.")
    ] = "7.3",
    guests: Annotated[int, typer.Option(metavar="N", min=1, max=3, help="How many guests.")] = 1,
    ram: Annotated[str, typer.Option(metavar="SIZE", help="Memory of each guest.")] = "256M",
    passthrough: Annotated[
        bool, typer.Option("--passthrough", help="A guest with a network card of the host.")
    ] = False,
) -> None:
    """Replace a host's kernel under running guests, and prove that they survived.

    Exits with 0 only if every guest did. The report is build/demo/report.json, with
    --passthrough build/demo/passthrough.json.
    """
    if passthrough:
        from pkernfs.lab import passthrough_demo

        if not passthrough_demo.run(kernel, target, ram):
            sys.exit(1)
        return
    from pkernfs.lab import demo as demonstration

    if not demonstration.run(kernel, target, guests, ram):
        sys.exit(1)


def _layout(region: str, ram: str | None, nodes: int) -> Layout:
    from pkernfs.host.ranges import parse_size
    from pkernfs.lab.memory import Layout

    return Layout.of(parse_size(region), parse_size(ram) if ram else None, nodes)


def _config(
    kernel: str,
    layout: Layout,
    share: Path | None,
    append: str,
    systemd: bool,
    no_store: bool,
    kvm: bool,
    cpus: int | None,
    iommu: str,
    device: list[str] | None,
    zeroed: bool,
    installed: bool,
) -> HostConfig:
    from pkernfs.lab.machine import HostConfig

    if share is not None and not share.is_dir():
        raise UsageError(f"{share} is not a directory", "name one that is there: --share DIR")
    return HostConfig(
        kernel=kernel,
        layout=layout,
        share=share.resolve() if share else None,
        append=tuple(append.split()),
        systemd=systemd,
        store=not no_store and layout.region > 0,
        kvm=kvm,
        cpus=cpus,
        iommu=iommu,
        devices=tuple(device or ()),
        zeroed=zeroed,
        installed=installed,
    )
