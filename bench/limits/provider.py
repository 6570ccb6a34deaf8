"""A provider for the length of a run, and what can be read from it. It must not know who calls it, or how."""

import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.limits.semantics import MODEL, Semantics
from bench.limits.toml import write_toml

THROTTLED = 429
STOP_TIMEOUT_S = 10


@dataclass(frozen=True)
class Arrival:
    """A call that came: when on the monotonic clock, under which name, and how it was answered."""

    at_s: float
    request_id: str
    status: int | None


@dataclass(frozen=True)
class Seen:
    """All that the provider saw: arrivals, charges `[seconds, requests, tokens...]`, tokens billed by request."""

    arrivals: tuple[Arrival, ...]
    charges: tuple[tuple[float, ...], ...]
    billed: dict[str, int]


class Provider:
    """The simulator as a process of its own."""

    def __init__(self, semantics: Semantics, folder: Path) -> None:
        """Keep its configuration in `folder`; start nothing yet."""
        self.semantics = semantics
        self._config = folder / "simulator.toml"
        self._log = folder / "simulator.log"
        self.url = ""

    def __enter__(self) -> Self:
        """Start it and wait for its address."""
        write_toml(self._config, self.semantics.as_simulator())
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.limits.simulator", str(self._config)],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url:
            raise RuntimeError(f"the simulator did not start: {self._log.read_text(errors='replace')}")
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str) -> Any:
        """Read one of its pages."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310 - our own
            return json.load(answer)

    def post(self, path: str, content: object) -> Any:
        """Tell it something."""
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), method="POST")  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def look(self) -> Seen:
        """Read everything; raise RuntimeError if its own counts contradict what was noted of each call."""
        stats = self.get("/stats")["models"].get(MODEL, {"statuses": {}})
        arrivals = tuple(Arrival(at_s, name, status) for at_s, name, status in self.get("/arrivals"))
        noted = sum(arrival.status == THROTTLED for arrival in arrivals)
        if noted < stats["statuses"].get(str(THROTTLED), 0):
            raise RuntimeError(f"{noted} calls were seen to be refused, and the simulator says {stats['statuses']}")
        charges = tuple((row[0], *row[2:]) for row in self.get(f"/accepted?model={MODEL}"))
        lines = self.get("/invoice")["lines"]
        billed = {
            line["client_request_id"]: line["input_tokens"] + line["cached_input_tokens"] + line["output_tokens"]
            for line in lines
        }
        return Seen(arrivals, charges, billed)
