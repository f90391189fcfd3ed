"""metrics.jsonl: one JSON object a line about a run's progress, cut back to a checkpoint's length on resuming."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtattn.errors import FileError


class MetricsFile:
    """The append-only record of one run.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes written so far; a checkpoint remembers it."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """Every line, oldest first; one that is no JSON object is left out."""
        found = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in found if isinstance(line, dict)]

    def append(self, line: dict[str, Any]) -> None:
        """Write one line, which is on the disk when this returns.

        Raises:
            FileError: no space, no permission.
        """
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(
                f"{self.path}: cannot be written: {error.strerror}; the last checkpoint is intact"
            ) from None

    def cut(self, size: int, warn: Callable[[str], None]) -> None:
        """Forget the lines written after the checkpoint that knew this size: they are about to be written again."""
        if self.size < size:
            warn(f"{self.path}: {size - self.size} bytes of earlier lines are missing; training goes on without them")
        else:
            with self.path.open("ab") as file:
                file.truncate(size)
