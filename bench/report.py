"""The result of a benchmark: a table for people, a file for the next run. It must not know what was measured."""

import json
import operator
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Column, Table

__all__ = ["Measure", "Report"]

WIDTH = 150
RESULTS = Path(__file__).parent / "results"
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True)
class Measure:
    """One figure; `must` is a comparison and a bound in the same unit, like `>= 0.97`."""

    name: str
    value: float
    unit: str
    must: str | None = None
    beside: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Tell whether the figure is as it must be."""
        if self.must is None:
            return True
        comparison, bound = self.must.split()
        return bool(COMPARISONS[comparison](self.value, float(bound)))


class Report:
    """Gathers the measures of one run, from its start."""

    def __init__(self, name: str, *packages: str) -> None:
        """Begin a run; the versions of `packages` are written down with it."""
        self.name = name
        self.measures: list[Measure] = []
        self.notes: list[str] = []
        self._begun = time.monotonic()
        self._load_before = os.getloadavg()[0]
        self._versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}

    def add(
        self, name: str, value: float, unit: str, *, must: str | None = None, beside: dict[str, float] | None = None
    ) -> None:
        """Note a figure, and what its peers reached in the same run."""
        self.measures.append(Measure(name, value, unit, must, beside or {}))

    def note(self, sentence: str) -> None:
        """Say what a reader of the figures has to know of how they came about."""
        self.notes.append(sentence)

    def as_json(self) -> dict[str, Any]:
        """Give the run as it is written to the file."""
        return {
            "name": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
                "load_before": round(self._load_before, 2),
            },
            "versions": self._versions,
            "seconds": round(time.monotonic() - self._begun, 1),
            "notes": self.notes,
            "measures": [{**asdict(measure), "holds": measure.holds} for measure in self.measures],
        }

    def finish(self, *, as_json: bool = False, short: bool = False) -> int:
        """Print the run and give the exit code: 1 if a measure falls short of its `must`.

        A full run also writes its file; a short one must not take the place of it.
        """
        content = self.as_json()
        if not short:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.json").write_text(json.dumps(content, indent=2) + "\n")
        console = Console(width=max(WIDTH, Console().width))
        if as_json:
            console.print_json(data=content)
        else:
            console.print(self._table())
            console.print(*self.notes, sep="\n", highlight=False)
        return 0 if all(measure.holds for measure in self.measures) else 1

    def _table(self) -> Table:
        table = Table(Column("measure", no_wrap=True), "value", "unit", "must", "holds", "beside", title=self.name)
        for measure in self.measures:
            beside = ", ".join(f"{peer} {value:g}" for peer, value in measure.beside.items())
            holds = "" if measure.must is None else ("yes" if measure.holds else "[red]no[/red]")
            table.add_row(measure.name, f"{measure.value:g}", measure.unit, measure.must or "", holds, beside)
        return table
