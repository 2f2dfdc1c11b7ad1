"""What a benchmark that was stopped goes on from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sepconv import files
from sepconv.reading import read_json


class Journal:
    """The finished parts of a measurement, plain values by name, kept in a file until the measurement is whole.

    Args:
        path: of the file; None keeps the parts in memory alone.
        identity: what they depend on (command, machine, code): a file of another is not used.
    """

    def __init__(self, path: Path | None = None, identity: dict[str, Any] | None = None) -> None:
        self.path, self.identity = path, identity
        self.parts: dict[str, Any] = {}
        if path is not None and path.exists():
            before = read_json(path)
            if isinstance(before, dict) and before.get("identity") == identity:
                self.parts = before["parts"]

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """The part of that name, by `measure` unless it is there."""
        if name not in self.parts:
            self.keep(name, measure())
        return self.parts[name]

    def keep(self, name: str, value: Any) -> None:
        """Takes `value` for the part of that name."""
        self.parts[name] = value
        if self.path is not None:
            files.write(self.path, json.dumps({"identity": self.identity, "parts": self.parts}))

    def close(self) -> None:
        """Removes the file: the measurement is whole, and written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
