# SPDX-License-Identifier: GPL-2.0-only
"""The processor that a guest sees, feature by feature, so that its successor has the same.

``-cpu host`` and most models mean what this kernel's KVM can do. One that can do less, or new
microcode that took something away, would give a guest that has seen a feature a processor
without it, and QEMU loads such a state without a word: the guest dies of the first instruction
that is not there any more. So the processor of the running QEMU is written out in full, what it
has and what it has not, and enforced (x86_cpu_filter_features() in target/i386/cpu.c).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pkernfs.vmm.command import last_value
from pkernfs.vmm.config import Guest

if TYPE_CHECKING:
    from pkernfs.vmm.monitor import Monitor

#: Features that QEMU sets by itself: two by how many processors there are
#: (x86_cpu_expand_features()), one by what the guest does with its interrupt controller
#: (cpu_clear_apic_feature()). Written out, they would be asked for instead.
_BY_ITSELF = frozenset({"ht", "cmp-legacy", "apic"})
#: From this version on QEMU says all properties of an object at once.
_ALL_AT_ONCE = (10, 1)

_TYPE = "-x86_64-cpu"
#: What ends the written processor; QEMU goes on without what it can't have where this is missing.
_ENFORCED = ",enforce=on"
#: mark_unavailable_features() in target/i386/cpu.c: ``CPUID[eax=01h].ECX.rdrand [bit 30]``,
#: ``CPUID.01H:ECX.rdrand [bit 30]`` in older versions, ``MSR(48Bh).vmx-ept [bit 1]``.
_LOST = re.compile(
    r"(?:requested feature|were not requested): (?:CPUID\S*?E[A-D]X|MSR\(\w+\))\.?(\S*) \[bit (\d+)"
)


@dataclass(frozen=True)
class Processor:
    """What a guest's processors are like.

    :ivar model: QEMU's name for it; empty: not known.
    :ivar features: each that QEMU has a name for, and whether the guest has it.
    """

    model: str = ""
    features: Mapping[str, bool] = field(default_factory=dict)


async def ask(session: Monitor, version: tuple[int, ...], path: str) -> Processor:
    """Ask a QEMU for a processor; nothing is changed.

    :param version: of its program.
    :param path: the processor's, in QEMU's tree of objects.
    :raises PkernfsError: it does not answer.
    """
    # All features that QEMU has a name for, and no other property: x86_cpu_static_props() in
    # target/i386/cpu-system.c.
    expanded = await session.execute(
        "query-cpu-model-expansion", {"type": "static", "model": {"name": "base"}}
    )
    known = {name for name, value in expanded["model"]["props"].items() if isinstance(value, bool)}
    values = await _values(session, version, path, sorted(known - _BY_ITSELF))
    features = {name: value for name, value in values.items() if isinstance(value, bool)}
    return Processor(str(values["type"]).removesuffix(_TYPE), features)


async def _values(
    session: Monitor, version: tuple[int, ...], path: str, names: Sequence[str]
) -> dict[str, Any]:
    wanted = ["type", *names]
    if version >= _ALL_AT_ONCE:
        (found,) = await session.execute("qom-list-get", {"paths": [path]})
        there = {entry["name"]: entry.get("value") for entry in found["properties"]}
        return {name: there.get(name) for name in wanted}
    return {
        name: await session.execute("qom-get", {"path": path, "property": name}) for name in wanted
    }


def written_out(arguments: Sequence[str], processor: Processor, unknown: Sequence[str] = ()) -> str:
    """The value of ``-cpu`` for exactly this processor.

    :param arguments: of the guest; what they say of it beyond features counts on.
    :param unknown: features that the running QEMU does not know, so the guest has not got them.
    :returns: empty when the processor is not known.
    """
    if not processor.features:
        return ""
    # QEMU knows no quoting here: x86_cpu_parse_featurestr().
    model, *own = (last_value(arguments, "cpu") or processor.model).split(",")
    features = {**processor.features, **dict.fromkeys(unknown, False)}
    words = [model, *(_plain(word) for word in own)]
    words += [f"{name}={'on' if has else 'off'}" for name, has in sorted(features.items())]
    return ",".join(words) + _ENFORCED


def _plain(word: str) -> str:
    """``+feature`` as ``feature=on``: the former would count more than what comes later."""
    if word.startswith(("+", "-")):
        return f"{word[1:]}={'on' if word[0] == '+' else 'off'}"
    return word


def not_enforced(written: str) -> str:
    """The same processor, or what of it this kernel has."""
    return written.removesuffix(_ENFORCED)


def more(running: Processor, next_one: Processor) -> list[str]:
    """Features that a successor has and that the running QEMU does not even know."""
    return [
        name
        for name, has in sorted(next_one.features.items())
        if has and name not in running.features
    ]


def read_lost(said: str) -> tuple[str, ...]:
    """Features that QEMU says it can't have, by name where they have one."""
    found = (match[1] or f"bit {match[2]}" for match in _LOST.finditer(said))
    return tuple(dict.fromkeys(found))


def lost(guest: Guest) -> tuple[str, ...]:
    """Features for lack of which a guest's QEMU did not start in this kernel."""
    try:
        said = guest.log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    # It says the same of a processor that is not enforced, and goes on.
    return read_lost(said) if re.search(r"doesn't support requested features$", said, re.M) else ()
