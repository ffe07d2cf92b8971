# SPDX-License-Identifier: GPL-2.0-only
"""How guests are started, kept on disk as well.

A store is memory: it ends when the machine loses power, and the guests' definitions with it.
What was started by ``vm start --ram`` can be started again after that, by ``vm start NAME``
or by its unit, with the same arguments and from its disks.
"""

from __future__ import annotations

from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.files import read_json, write_json
from pkernfs.host.machine import Machine, require_store
from pkernfs.vmm.config import CONFIG_SCHEMA, Guest, Places, check_name

KEPT = Path("/var/lib/pkernfs/vms")
_SCHEMA = "pkernfs-kept-vm/1"


def _file(name: str, kept: Path) -> Path:
    return kept / f"{check_name(name)}.json"


def keep(guest: Guest, kept: Path = KEPT) -> None:
    """Keep how a guest is started.

    :raises OSError: it can't be written.
    """
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = read_json(guest.config_file, CONFIG_SCHEMA)
    value = {"schema": _SCHEMA, "store": str(guest.store), "config": config}
    write_json(_file(guest.name, kept), value)


def keep_up(guest: Guest, kept: Path = KEPT) -> None:
    """Keep it again after it has changed, if it is kept.

    :raises OSError: it can't be written.
    """
    if _file(guest.name, kept).exists():
        keep(guest, kept)


def require_home(
    places: Places, name: str, kept: Path = KEPT, machine: Machine | None = None
) -> None:
    """Make sure that the store which a guest was started in is mounted, if the host has it.

    :raises PkernfsError: it is not mounted: the guest may lie in it, saved.
    """
    file = _file(name, kept)
    if Guest(name, places).exists() or not file.exists():
        return
    store = Path(read_json(file, _SCHEMA)["store"])
    if store in places.stores:
        require_store(store, machine)


def restore(places: Places, name: str, kept: Path = KEPT, machine: Machine | None = None) -> bool:
    """Put the definition of a guest back into its store, if that has lost it.

    :returns: whether it was lost and is back.
    :raises PkernfsError: the guest's store is not there, or not mounted.
    """
    file = _file(name, kept)
    if Guest(name, places).exists() or not file.exists():
        return False
    value = read_json(file, _SCHEMA)
    store = Path(value["store"])
    if store not in places.stores:
        raise PkernfsError(
            f"guest {name} lay in a store at {store}, which this host does not have now",
            "start it anew with --ram and its arguments",
        )
    require_store(store, machine)
    guest = Guest(name, places, store)
    guest.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(guest.config_file, value["config"])
    return True


def forget(name: str, kept: Path = KEPT) -> None:
    """Forget a guest that was deleted."""
    _file(name, kept).unlink(missing_ok=True)
