"""The committed measurements, read: one JSON file a run, and how figures of one run compare."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import spread

OURS = "secateur"


@dataclass(frozen=True)
class Run:
    """One file."""

    document: dict[str, Any]

    @property
    def contenders(self) -> list[str]:
        return list(self.document["contenders"])

    @property
    def peers(self) -> list[str]:
        """Those that are not Secateur."""
        return [name for name in self.contenders if not name.startswith(OURS)]

    def cells(self, contender: str = OURS) -> list[str]:
        return list(self.document["contenders"][contender]["figures"])

    def values(self, contender: str, cell: str, figure: str) -> list[float]:
        """A figure in each round."""
        rounds = self.document["contenders"][contender]["figures"][cell]["rounds"]
        return [each[figure] for each in rounds]

    def median(self, contender: str, cell: str, figure: str) -> float:
        return statistics.median(self.values(contender, cell, figure))

    def ratio(self, cell: str, figure: str, other: str, *, of: str = OURS) -> dict[str, float]:
        """Spread of `of`'s figure over `other`'s, each taken within one round."""
        pairs = zip(self.values(of, cell, figure), self.values(other, cell, figure), strict=True)
        return spread([a / b for a, b in pairs])

    def resident_bytes(self, contender: str) -> int:
        resident: int = self.document["contenders"][contender]["resident_bytes"]
        return resident

    def limit(self, name: str) -> float:
        """The best reading of the run: what the machine can do when nothing slows it down."""
        return float(max(reading[name] for reading in self.document["limits"]))


class Results:
    """The directory of those of one kind of machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, name: str) -> Run | None:
        """None: it has not been measured."""
        file = self._directory / f"{name}.json"
        return Run(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    def document(self, name: str) -> dict[str, Any] | None:
        run = self.run(name)
        return None if run is None else run.document

    def names(self) -> Sequence[str]:
        return sorted(file.stem for file in self._directory.glob("*.json"))


def by_machine(directory: Path) -> dict[str, Results]:
    """The directories in it: each kind of machine, by what it computes with (bench/environment.py)."""
    return {path.name: Results(path) for path in sorted(directory.iterdir()) if path.is_dir()}
