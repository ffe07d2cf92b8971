# SPDX-License-Identifier: GPL-2.0-only
"""Which Debian mirror this machine uses, from apt's own configuration.

The lab names no host of its own: where apt gets this machine's packages is where the
packages of the host image come from, through whatever proxy apt is told to use.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError

#: Debian 13: the release that the lab's hosts run.
RELEASE = "trixie"
BACKPORTS = f"{RELEASE}-backports"
_OPTIONAL = (f"{RELEASE}-updates", f"{RELEASE}-security")
_HELPER = "/usr/lib/apt/apt-helper"


@dataclass(frozen=True)
class Source:
    """One suite of an archive, with the digest of nothing but its place."""

    uri: str
    suite: str

    @property
    def line(self) -> str:
        """As sources.list has it."""
        return f"deb {self.uri} {self.suite} main"


def configured_archives() -> tuple[str, ...]:
    """The archives of apt's configuration that have a "main", in its order.

    :raises PkernfsError: apt is not there or has no source at all.
    """
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Identifier: Packages",
        "Component: main",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PkernfsError(
            f"apt does not tell its sources: {error}", "the lab needs a Debian system"
        ) from error
    archives = tuple(dict.fromkeys(done.stdout.split()))
    if not archives:
        raise PkernfsError(
            "apt has no source with a component main", "check /etc/apt/sources.list.d"
        )
    return archives


def has_suite(uri: str, suite: str) -> bool:
    """Whether the archive at ``uri`` offers ``suite``, asked through apt."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "InRelease"
        command = [_HELPER, "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"]
        command += ["download-file", f"{uri.rstrip('/')}/dists/{suite}/InRelease", str(target)]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode == 0 and target.is_file()


def sources() -> tuple[Source, ...]:
    """The suites that host images are made from, those that can be reached.

    :raises PkernfsError: no configured archive has the release and its backports.
    """
    archives = configured_archives()
    main = _find(archives, RELEASE)
    if main is None or not has_suite(main, BACKPORTS):
        raise PkernfsError(
            f"no archive in apt's configuration offers {RELEASE} and {BACKPORTS}",
            "add a Debian mirror to /etc/apt/sources.list.d and run apt-get update",
        )
    optional = [(_find((main, *archives), suite), suite) for suite in _OPTIONAL]
    return (
        Source(main, RELEASE),
        *(Source(uri, suite) for uri, suite in optional if uri is not None),
        Source(main, BACKPORTS),
    )


def _find(archives: tuple[str, ...], suite: str) -> str | None:
    return next((uri for uri in archives if has_suite(uri, suite)), None)
