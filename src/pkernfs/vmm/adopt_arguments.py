# SPDX-License-Identifier: GPL-2.0-only
"""From the command line of a QEMU that someone else started to that of its successor.

What belonged to one start only is left out, what the starter passed in as an open file is
made anew where that can be done, and everything else is refused with the reason: a guest
must not be adopted whose successor can't start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pkernfs.errors import PkernfsError
from pkernfs.vmm import outlives
from pkernfs.vmm.options import Option, Properties, parse

#: Left out: what they ask for was for that start, or is pkernfs's business from now on.
_LEFT_OUT = frozenset(
    {"S", "daemonize", "pidfile", "incoming", "loadvm", "add-fd", "preconfig", "no-shutdown"}
)

_REFUSED = {
    "snapshot": "the disk's changes are in a temporary file, which ends with this QEMU",
    "chroot": "start it without; files named in its arguments must be found at the next start",
    "readconfig": "what that file says can't be checked: start it with its content as arguments",
    "sdl": "its window ends with the session: -display none, or -vnc",
    "curses": "its terminal ends with the session: -display none, or -vnc",
    "mem-path": "name the file by -object memory-backend-file,... instead",
}
_WINDOWS = ("gtk", "sdl", "curses", "cocoa", "dbus")
_DISPLAYS = ("display", "vnc", "spice", "nographic")
_FDSET = re.compile(r"/dev/fdset/(\d+)")


class NotAdoptable(PkernfsError):
    """A guest can't be adopted as it is."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"this guest can't be adopted: {what}", hint)


@dataclass(frozen=True)
class Circumstances:
    """What the command line alone does not say.

    :ivar ram_id: id of the object that is the guest's memory.
    :ivar ram: where the memory's file will be.
    :ivar machine: versioned machine type.
    :ivar runtime: directory of what is made anew at each start.
    :ivar taps: network interfaces by the number of the descriptor that QEMU was given.
    :ivar files: what the descriptors are.
    :ivar user: "UID:GID" of a QEMU that does not run as root.
    :ivar version: QEMU's, e.g. "11.1.3".
    """

    ram_id: str
    ram: str
    machine: str
    runtime: str
    taps: Mapping[int, str] = field(default_factory=dict)
    files: Mapping[int, str] = field(default_factory=dict)
    user: str = ""
    version: str = "11.1.0"


@dataclass
class Successor:
    """The command line of the next start, and what will be different with it.

    :ivar options: in order.
    :ivar notes: what the operator should know, a sentence each.
    """

    options: list[Option] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words."""
        return tuple(word for option in self.options for word in option.words())


def memory_of(arguments: Sequence[str]) -> tuple[str, Properties]:
    """Id and properties of the object that is the guest's memory.

    :raises NotAdoptable: its memory is not one file, or not shared; says what to write.
    """
    objects = [o.properties() for o in parse(arguments) if o.name == "object"]
    backends = [p for p in objects if p.text("qom-type").startswith("memory-backend-")]
    if len(backends) > 1:
        raise NotAdoptable(
            f"it has {len(backends)} pieces of memory",
            "one node and one memory backend is what can be taken along",
        )
    if not backends or backends[0].text("qom-type") != "memory-backend-file":
        raise NotAdoptable("its memory does not lie in a store", HOW_TO)
    memory = backends[0]
    if not memory.is_on("share"):
        raise NotAdoptable("its memory is a private copy of the file", HOW_TO)
    return memory.text("id"), memory


#: What someone who starts guests has to write, so that they can be adopted.
HOW_TO = (
    "scripts: -object memory-backend-file,id=ram,size=SIZE,mem-path=/mnt/pkernfs/NAME.ram,share=on "
    "-machine TYPE,memory-backend=ram; "
    'libvirt: <memoryBacking><source type="file"/><access mode="shared"/></memoryBacking> '
    'in the domain, memory_backing_dir = "/mnt/pkernfs" in /etc/libvirt/qemu.conf'
)


def successor(arguments: Sequence[str], about: Circumstances) -> Successor:
    """Write the command line of the next start.

    :param arguments: the running QEMU's, without the program.
    :raises NotAdoptable: something can't be made anew; names it.
    """
    return _Writer(parse(arguments), about).write()


class _Writer:
    def __init__(self, options: Sequence[Option], about: Circumstances) -> None:
        self._options = options
        self._about = about
        self._done = Successor()
        self._monitors = {
            option.properties().text("chardev")
            for option in options
            if option.name == "mon" or self._is_monitor(option)
        }
        self._fdsets = self._read_fdsets()
        self._handlers: dict[str, Callable[[Option], Option | None]] = {
            "chardev": self._chardev,
            "mon": self._mon,
            "netdev": self._netdev,
            "nic": self._nic,
            "object": self._object,
            "machine": self._machine,
            "M": self._machine,
            "device": self._device,
            "display": self._display,
            "qmp": self._server,
            "qmp-pretty": self._server,
            "monitor": self._server,
            "debugcon": self._server,
            "run-with": self._run_with,
            "set": self._set,
            "serial": self._server,
            "parallel": self._server,
            "sandbox": self._sandbox,
            "action": self._action,
        }

    def write(self) -> Successor:
        for option in self._options:
            if option.name in _REFUSED:
                raise NotAdoptable(str(option), _REFUSED[option.name])
            if option.name in _LEFT_OUT:
                continue
            kept = self._handlers.get(option.name, _same)(option)
            if kept is not None:
                self._refuse_fdset(kept)
                self._refuse_ending(kept)
                self._done.options.append(kept)
        self._complete()
        return self._done

    def _complete(self) -> None:
        names = {option.name for option in self._options}
        add = self._done.options.append
        if not names & {"machine", "M"}:
            add(Option("machine", self._about.machine))
        if not names & set(_DISPLAYS):
            add(Option("display", "none"))
        if self._about.user and not names & {"runas", "run-with"}:
            # -run-with user= is QEMU 9.1's word for -runas.
            new = tuple(int(part) for part in self._about.version.split(".")[:2]) >= (9, 1)
            word = ("run-with", "user=") if new else ("runas", "")
            add(Option(word[0], word[1] + self._about.user))

    def _note(self, text: str) -> None:
        self._done.notes.append(text)

    def _is_monitor(self, option: Option) -> bool:
        return option.name == "object" and option.properties().text("qom-type").startswith(
            "monitor-"
        )

    # Files that were open already when QEMU started

    def _read_fdsets(self) -> dict[str, int]:
        found = {}
        for option in self._options:
            if option.name == "add-fd":
                properties = option.properties()
                found[properties.text("set")] = int(properties.text("fd") or -1)
        return found

    def _refuse_fdset(self, option: Option) -> None:
        if _FDSET.search(option.value or ""):
            raise NotAdoptable(
                f"{option} uses a file that was opened for it",
                "start the guest with the file's own path",
            )

    def _refuse_ending(self, option: Option) -> None:
        found = outlives.obstacle(option)
        if found is not None:
            raise NotAdoptable(found.what, found.hint)

    def _fdset_file(self, path: str) -> str:
        """The file behind /dev/fdset/N; "" when it is a pipe or has no path."""
        match = _FDSET.fullmatch(path)
        number = self._fdsets.get(match[1], -1) if match else -1
        target = self._about.files.get(number, "")
        return target if target.startswith("/") and not target.endswith("(deleted)") else ""

    # Character devices and monitors

    def _chardev(self, option: Option) -> Option | None:
        properties = option.properties()
        name = properties.text("id")
        if properties.text("fd") and name in self._monitors:
            self._note(
                f"monitor {name} was opened by who started this QEMU, and is not made anew: "
                "the next one has pkernfs's own"
            )
            return None
        if properties.text("fd"):
            path = f"{self._about.runtime}/{name}.sock"
            self._note(f"the socket of {name} will be {path}")
            properties = Properties(
                {"backend": "socket", "id": name, "path": path, "server": "on", "wait": "off"},
                properties.implied,
            )
        properties = self._log(name, properties)
        if properties.text("backend") == "pty":
            self._note(f"{name} gets another pseudo-terminal: see query-chardev")
        return self._checked(option.having(_not_waiting(properties)))

    def _log(self, name: str, properties: Properties) -> Properties:
        """Replace a log that the starter opened (libvirt's virtlogd does)."""
        for key, append in (("path", "append"), ("logfile", "logappend")):
            if not _FDSET.fullmatch(properties.text(key)):
                continue
            path = self._fdset_file(properties.text(key)) or f"{self._about.runtime}/{name}.log"
            self._note(f"what {name} prints goes to {path}")
            properties = properties.having(**{key: path, append: True})
        return properties

    def _mon(self, option: Option) -> Option | None:
        name = option.properties().text("chardev")
        return None if self._passed(name) else option

    def _passed(self, chardev: str) -> bool:
        """Was this character device's socket opened by who started QEMU?"""
        return any(
            option.name == "chardev"
            and option.properties().text("id") == chardev
            and option.properties().text("fd") != ""
            for option in self._options
        )

    def _server(self, option: Option) -> Option | None:
        """-qmp, -monitor, -serial: unix:PATH,server or telnet:..., or chardev:NAME."""
        value = option.value or ""
        shared = "mon:" if value.startswith("mon:") else ""
        kind, mark, rest = value.removeprefix(shared).partition(":")
        if not mark or kind not in ("unix", "tcp", "telnet", "websocket"):
            return self._checked(option)
        properties = _not_waiting(Properties.parse(rest, "address"))
        return self._checked(replace(option, value=f"{shared}{kind}:{properties}"))

    def _checked(self, option: Option) -> Option:
        if re.search(r"(^|[:,])(mon:)?stdio($|,)", option.value or ""):
            self._note(f"{option}: there is no terminal, what it prints goes to QEMU's log")
        return option

    # Network

    def _netdev(self, option: Option) -> Option | None:
        properties = option.properties()
        name, kind = properties.text("id"), properties.text("type")
        passed = [key for key in ("fd", "fds", "h2g", "addr") if '"fd"' in properties.text(key)]
        passed += [key for key in ("fd", "fds") if properties.text(key)]
        if not passed:
            return option
        if kind != "tap":
            raise NotAdoptable(
                f"network {name} ({kind}) is a socket that was opened for it",
                "a tap interface or -netdev user can be made anew",
            )
        numbers = (properties.text("fd") or properties.text("fds")).split(":")
        names = {self._about.taps.get(int(number), "") for number in numbers if number.isdigit()}
        if len(names) != 1 or "" in names:
            raise NotAdoptable(
                f"network {name} is no tap interface that has a name",
                "a macvtap can't be made anew: put the guest on a bridge",
            )
        return option.having(self._tap(properties, names.pop(), len(numbers)))

    def _tap(self, properties: Properties, interface: str, queues: int) -> Properties:
        self._note(
            f"network {properties.text('id')} will make the interface {interface} anew: "
            "resume puts it back onto its bridge"
        )
        vhost = properties.is_on("vhost") or bool(properties.text("vhostfd"))
        fresh = properties.without("fd", "fds", "vhostfd", "vhostfds", "vhost").having(
            ifname=interface, script="no", downscript="no", vhost=vhost
        )
        if queues > 1:
            fresh = fresh.having(queues=queues if fresh.as_json else str(queues))
        return fresh

    def _nic(self, option: Option) -> Option:
        if re.search(r"(^|,)(fds?|vhostfds?)=", option.value or ""):
            raise NotAdoptable(
                f"{option} uses an open file", "write it as -netdev tap,ifname=... and -device"
            )
        return option

    # Machine, memory, devices

    def _machine(self, option: Option) -> Option:
        properties = option.properties()
        # The first word, so that it stays without its name.
        items = {"type": self._about.machine, **properties.without("type").items}
        return option.having(Properties(items, "type"))

    def _object(self, option: Option) -> Option | None:
        properties = option.properties()
        kind, name = properties.text("qom-type"), properties.text("id")
        if name == self._about.ram_id:
            # With discard-data= QEMU empties the file when it ends.
            kept = properties.without(
                "prealloc", "prealloc-threads", "prealloc-context", "discard-data"
            )
            return option.having(kept.having(mem_path=self._about.ram))
        if kind == "secret" and properties.text("file"):
            return self._secret(option, name)
        if kind.startswith("monitor-") and self._passed(properties.text("chardev")):
            return None
        return option

    def _secret(self, option: Option, name: str) -> Option | None:
        """libvirt's master key is of use only if something else is encrypted with it."""
        users = [
            other
            for other in self._options
            if other is not option and re.search(rf'[=":]{re.escape(name)}($|[",}}])', str(other))
        ]
        if users:
            raise NotAdoptable(
                f"{users[0].words()[0]} needs the secret {name}, "
                "whose file who started this QEMU removes",
                "a disk with a passphrase can't be taken along",
            )
        return None

    def _device(self, option: Option) -> Option:
        driver = option.properties().text("driver")
        if driver.startswith("vfio-"):
            raise NotAdoptable(
                f"-device {driver}", "passed-through devices can't be adopted: remove it before"
            )
        return option

    def _run_with(self, option: Option) -> Option:
        if option.properties().text("chroot"):
            raise NotAdoptable(str(option), _REFUSED["chroot"])
        return option

    def _set(self, option: Option) -> Option | None:
        """-set object.ID.discard-data=on: QEMU would empty the memory's file when it ends."""
        return None if "discard-data" in (option.value or "") else option

    def _display(self, option: Option) -> Option:
        if (option.value or "").partition(",")[0] in _WINDOWS:
            raise NotAdoptable(str(option), "a window ends with the session: -display none, -vnc")
        return option

    def _sandbox(self, option: Option) -> Option:
        """Leave the change to another user allowed: the successor starts as root.

        The filter is set before that (parse_sandbox() in system/qemu-seccomp.c), and with
        "children" setuid(2) is refused as well. What QEMU is afterwards can't go back.
        """
        properties = option.properties()
        if self._about.user:
            properties = properties.without("elevateprivileges")
        return option.having(properties)

    def _action(self, option: Option) -> Option:
        """libvirt ends a QEMU whose guest is off. The next one has to do that by itself."""
        properties = option.properties()
        if properties.text("shutdown") == "pause":
            properties = properties.having(shutdown="poweroff")
        return option.having(properties)


def _same(option: Option) -> Option:
    return option


def _not_waiting(properties: Properties) -> Properties:
    """A server that does not hold up the start until somebody connects."""
    if not properties.is_on("server"):
        return properties
    kept = properties.without("server", "wait", "nowait")
    return kept.having(server=True, wait=False)
