# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's command line taken apart and put together again.

QEMU takes the properties of an object as ``word,key=value,...`` or as JSON, which libvirt
uses. A comma within a value is written twice (qemu(1)).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Options without a value: qemu-options.hx, those of x86 without HAS_ARG.
_FLAGS = frozenset(
    {
        *("S", "s", "daemonize", "enable-kvm", "full-screen", "mem-prealloc", "no-acpi"),
        *("no-fd-bootchk", "no-hpet", "no-reboot", "no-shutdown", "no-user-config"),
        *("nodefaults", "nographic", "old-param", "one-insn-per-tb", "only-migratable"),
        *("preconfig", "semihosting", "singlestep", "snapshot", "usb", "win2k-hack"),
        *("xen-attach", "xen-domid-restrict"),
    }
)

#: What the first word of an option's value stands for.
_IMPLIED = {
    "accel": "accel",
    "chardev": "backend",
    "cpu": "model",
    "device": "driver",
    "machine": "type",
    "M": "type",
    "mon": "chardev",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "fsdev": "fsdriver",
    "virtfs": "fsdriver",
    "object": "qom-type",
    "tpmdev": "type",
    "blockdev": "driver",
}


@dataclass(frozen=True)
class Option:
    """An option of QEMU's and what follows it.

    :ivar name: without dashes; empty for a word of its own (a disk image).
    """

    name: str
    value: str | None = None

    def words(self) -> tuple[str, ...]:
        """As it stands on the command line."""
        words = (f"-{self.name}",) if self.name else ()
        return words if self.value is None else (*words, self.value)

    def properties(self) -> Properties:
        """The value taken apart."""
        return Properties.parse(self.value or "", _IMPLIED.get(self.name, ""))

    def having(self, properties: Properties) -> Option:
        """The option with another value."""
        return replace(self, value=str(properties))

    def __str__(self) -> str:
        return " ".join(self.words())


def parse(words: Sequence[str]) -> list[Option]:
    """Take a command line apart, the program's name left out."""
    found = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            found.append(Option("", word))
            continue
        name = word.removeprefix("-").removeprefix("-")
        takes_value = name not in _FLAGS and rest
        found.append(Option(name, rest.pop(0) if takes_value else None))
    return found


@dataclass(frozen=True)
class Properties:
    """Properties of an object, in order.

    :ivar items: by name; True for a word without a value.
    :ivar implied: the name that the first word goes without.
    :ivar as_json: whether they are written as JSON.
    """

    items: dict[str, Any]
    implied: str = ""
    as_json: bool = False

    @classmethod
    def parse(cls, text: str, implied: str = "") -> Properties:
        """Take them apart."""
        if text.startswith("{"):
            return cls(dict(json.loads(text)), implied, as_json=True)
        items: dict[str, Any] = {}
        # A comma that is neither before nor behind another one.
        for index, part in enumerate(re.split(r"(?<!,),(?!,)", text)):
            key, mark, value = part.replace(",,", ",").partition("=")
            if mark:
                items[key] = value
            elif index == 0 and implied:
                items[implied] = key
            elif key:
                items[key] = True
        return cls(items, implied)

    def __str__(self) -> str:
        if self.as_json:
            return json.dumps(self.items, separators=(",", ":"))
        words = []
        for key, value in self.items.items():
            text = str(value).replace(",", ",,")
            if value is True:
                words.append(key)
            else:
                words.append(text if key == self.implied and not words else f"{key}={text}")
        return ",".join(words)

    def text(self, name: str) -> str:
        """A property as text; "" when it is not there."""
        value = self.items.get(name, "")
        return value if isinstance(value, str) else json.dumps(value)

    def flat(self) -> dict[str, str]:
        """All as text, what is nested by its dotted name: addr.type."""
        return dict(_flat(self.items))

    def is_on(self, name: str) -> bool:
        """Is a boolean property there and on?"""
        return self.items.get(name, False) in (True, "on", "yes", "true", "y")

    def without(self, *names: str) -> Properties:
        """These without some."""
        kept = {key: value for key, value in self.items.items() if key not in names}
        return replace(self, items=kept)

    def having(self, **changed: Any) -> Properties:
        """These with others, underscores in names standing for dashes.

        :param changed: True and False become "on" and "off" where JSON is not used.
        """
        fresh = {}
        for key, value in changed.items():
            word = ("on" if value else "off") if isinstance(value, bool) else value
            fresh[key.replace("_", "-")] = value if self.as_json else word
        return replace(self, items={**self.items, **fresh})


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        yield from _flat({str(index): inner for index, inner in enumerate(value)}, name)
    elif isinstance(value, bool):
        yield name, "on" if value else "off"
    else:
        yield name, str(value)
