# SPDX-License-Identifier: GPL-2.0-only
"""Writing small files so that a crash leaves the old or the new content, never half of it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: str, mode: int = 0o600) -> None:
    """Replace the content of a file in one step.

    :param path: file to write; its directory must exist.
    :param mode: permissions of the file. A guest's files are nobody else's business.
    :raises OSError: nothing was changed then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: object) -> None:
    """Replace a file by the JSON text of ``value`` in one step."""
    write_atomic(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """Read a file written by :func:`write_json` that names its own format.

    :param schema: the value that the member ``schema`` must have.
    :raises PkernfsError: the file is missing, unreadable, not JSON, or of another format.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PkernfsError(f"can't read {path}: {error}") from error
    found = value.get("schema") if isinstance(value, dict) else None
    if found != schema:
        raise PkernfsError(
            f"{path} is of format {found!r}, not {schema!r}",
            "it was written by another version of pkernfs: use that one",
        )
    assert isinstance(value, dict)
    return value
