"""Tables of rows as JSON lines: appended one write at a time, read up to the last whole line."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["JsonLines", "read_rows", "to_line"]


class JsonLines:
    """A table to append to.

    Every row is one write of the operating system, so a killed process leaves whole rows and at
    most one torn at the end. Numbers that are not finite are written as strings.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, row: dict[str, Any]) -> None:
        content = to_line(row).encode()
        try:
            written = os.write(self._handle, content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def to_line(row: dict[str, Any]) -> str:
    """A row and its newline."""
    text = json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False)
    return f"{text}\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The whole rows of a table; none if there is no file.

    Args:
        path: the table.
        needed: columns that every row must have; ``step`` must be a whole number.

    Raises:
        ValueError: a row before the last is not an object of JSON, or lacks a column; the message
            names file and line.
    """
    if not path.exists():
        return []
    *lines, torn = path.read_bytes().split(b"\n")  # a row counts once its newline is there
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a row of JSON, got {line[:80]!r}")
        for name in needed:
            if name not in row or (name == "step" and type(row[name]) is not int):
                wanted = "a whole number as 'step'" if name == "step" else f"a column {name!r}"
                raise ValueError(f"{path}:{number}: expected {wanted}, got {line[:80]!r}")
        rows.append(row)
    return rows
