"""The simulator as a process, its faults and its invoice. It must not know who calls it."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STOP_TIMEOUT_S = 10
NO_KEY = "none"


class Provider:
    """It is never killed: what it did must be known to the end."""

    def __init__(self, config: Path) -> None:
        """Take its configuration; start nothing yet."""
        self._config = config
        self.url = ""

    def __enter__(self) -> Self:
        """Start it and wait for its address."""
        log = self._config.with_suffix(".log")
        arguments = ["-m", "penstock.providers.simulator", "--port", "0", "--config", str(self._config)]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip().rpartition(" ")[2]
        if not self.url:
            raise RuntimeError(f"the simulator did not start: {log.read_text(errors='replace')}")
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

    def misbehave(self, name: str, **parameters: object) -> None:
        """Post a fault."""
        self._ask("/faults", "POST", {"faults": [{"name": name, **parameters}]})

    def behave(self) -> None:
        """Forget all faults."""
        self._ask("/faults", "DELETE")

    def invoice(self) -> list[dict[str, Any]]:
        """Give the lines of the invoice."""
        lines: list[dict[str, Any]] = self._ask("/invoice")["lines"]
        return lines

    def models(self) -> dict[str, Any]:
        """Give the counts of each model."""
        models: dict[str, Any] = self._ask("/stats")["models"]
        return models

    def in_flight(self) -> int:
        """Count the calls on their way."""
        return sum(int(model["in_flight"]) for model in self.models().values())

    def _ask(self, path: str, method: str = "GET", content: object = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, method=method)  # noqa: S310 - our own
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)
