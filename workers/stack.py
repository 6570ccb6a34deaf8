"""All processes of Penstock on one machine: started in order, watched, stopped in order. It must not know a job.

A service whose address is set in the environment is used as it is; the others are embedded.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import IO, Self

from sqlalchemy import text

from penstock.configuration import read_configuration
from penstock.errors import ConfigurationError, PenstockError
from penstock.settings import load_settings
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from workers.embedded import EmbeddedServices

SIMULATOR_PORT = 8091
FLOWER_PORT = 5555
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 45.0
FLOWER_CONFIG = Path(__file__).parent.parent / "config" / "flowerconfig.py"
LOG_LINES_SHOWN = 5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Tell = Callable[[str], None]


class ServiceFailedError(PenstockError):
    """A process of the stack ended by itself, or did not become ready."""


@dataclass
class Service:
    """One child process and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise ServiceFailedError with the end of its log if it is no longer running."""
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            raise ServiceFailedError(f"{self.name} ended with {code}. The end of {self.log}:\n  " + "\n  ".join(lines))


class Stack:
    """Starts everything in `__enter__`, stops everything in `__exit__`, whatever happened between."""

    def __init__(self, *, flower: bool = True, tell: Tell = print) -> None:
        """Read the settings; `tell` is called with a line at each step."""
        self.settings = load_settings()
        self.tell = tell
        self.services: list[Service] = []
        self.embedded = EmbeddedServices(self.settings.home)
        self.simulator_url: str | None = None
        self.flower_url: str | None = None
        self._with_flower = flower
        self._cleanup = ExitStack()
        self._environment = dict(os.environ)

    def __enter__(self) -> Self:
        """Start; raise ConfigurationError or ServiceFailedError, with nothing left running."""
        with ExitStack() as undo:
            undo.callback(self._cleanup.close)
            self._start()
            undo.pop_all()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop what was started, the last first; a second Ctrl-C does not leave processes behind."""
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._cleanup.close()
        finally:
            signal.signal(signal.SIGINT, previous)

    def check(self) -> None:
        """Raise ServiceFailedError if any process has ended."""
        for service in self.services:
            service.check()

    def wait(self) -> None:
        """Watch the processes until Ctrl-C or SIGTERM; raise ServiceFailedError if one ends by itself."""
        stop_asked = Event()
        previous = {number: signal.signal(number, lambda *_: stop_asked.set()) for number in STOP_SIGNALS}
        try:
            while not stop_asked.wait(0.5):
                self.check()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        self._lock()
        self._start_databases()
        self._start_simulator()
        catalogue = read_configuration(self.settings).catalogue
        self.tell("starting the pools " + ", ".join(tier.name for tier in catalogue.tiers) + ", feeder, upkeep, Flower")
        self._cleanup.callback(lambda: stop([service for service in self.services if service.name != "simulator"]))
        pools = [
            self._spawn(f"{tier.name}-{number}", "workers.worker", tier.name, "--name", f"{tier.name}-{number}")
            for tier in catalogue.tiers
            for number in range(1, tier.processes + 1)
        ]
        self._spawn("upkeep", "workers.worker", "upkeep")
        self._spawn("feeder", "workers.feeder")
        self._wait_for_pools(pools)
        if self._with_flower:
            self._start_flower()

    def _lock(self) -> None:
        self.settings.home.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (self.settings.home / "lock").open("w")
        self._cleanup.callback(lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                str(self.settings.home), "lock", "another stack runs here", "stop it, or set PENSTOCK_HOME elsewhere"
            ) from error

    def _start_databases(self) -> None:
        ours = {"postgres": self.settings.database_url is None, "redis": self.settings.broker_url is None}
        self.tell(f"starting {' and '.join(name for name, is_ours in ours.items() if is_ours) or 'no database'}")
        self._cleanup.callback(self.embedded.stop)
        self.embedded.start(**ours)
        engine = sync_engine(self.settings.require_database_url())
        migrate(engine, contract=ours["postgres"])
        engine.dispose()

    def _start_simulator(self) -> None:
        if "PENSTOCK_SIMULATOR_URL" in os.environ:
            return
        port = free_port(SIMULATOR_PORT)
        self.simulator_url = f"http://127.0.0.1:{port}"
        self._environment["PENSTOCK_SIMULATOR_URL"] = f"{self.simulator_url}/v1"
        self.tell(f"starting the simulator at {self.simulator_url}")
        config = str(self.settings.config / "simulator.toml")
        service = self._spawn("simulator", "penstock.providers.simulator", "--port", str(port), "--config", config)
        self._cleanup.callback(stop, [service])
        self._wait_for(service, lambda: _answers(f"{self.simulator_url}/health"))

    def _start_flower(self) -> None:
        """Start Flower after the pools: it learns the queues from the workers that it finds when it starts."""
        if not {"PENSTOCK_FLOWER_AUTH", "PENSTOCK_FLOWER_OPEN"} & self._environment.keys():
            password = secrets.token_urlsafe(9)
            self._environment["PENSTOCK_FLOWER_AUTH"] = f"penstock:{password}"
            self.tell(f"Flower's user is penstock, its password {password}; PENSTOCK_FLOWER_AUTH sets your own")
        port = free_port(FLOWER_PORT)
        self.flower_url = f"http://127.0.0.1:{port}"
        config = FLOWER_CONFIG.resolve()
        service = self._spawn(
            "flower", "celery", "-A", "workers.flower", "flower", f"--conf={config}", f"--port={port}"
        )
        self._wait_for(service, lambda: _answers(f"{self.flower_url}/healthcheck"))

    def _spawn(self, name: str, module: str, *arguments: str) -> Service:
        log = self.settings.home / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        service = Service(name, process, log)
        self.services.append(service)
        return service

    def _wait_for_pools(self, pools: list[Service]) -> None:
        """Wait until every pool has its lease."""
        engine = sync_engine(self.settings.require_database_url())
        pids = {str(pool.process.pid) for pool in pools}

        def have_leases() -> bool:
            with engine.connect() as connection:
                names = connection.scalars(text("SELECT id FROM workers WHERE lease_until > now()"))
                return pids <= {name.split(":")[-2] for name in names}

        for pool in pools:
            self._wait_for(pool, have_leases)
        engine.dispose()

    def _wait_for(self, service: Service, is_ready: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + READY_TIMEOUT_S
        while not is_ready():
            self.check()
            if time.monotonic() > ends_at:
                raise ServiceFailedError(
                    f"{service.name} was not ready after {READY_TIMEOUT_S:.0f} s; see {service.log}"
                )
            time.sleep(0.1)


def stop(services: list[Service]) -> None:
    """Ask processes to stop, all at once, and make those stop that do not."""
    for service in services:
        service.process.terminate()
    ends_at = time.monotonic() + STOP_TIMEOUT_S
    for service in services:
        try:
            service.process.wait(max(0.0, ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            service.process.kill()
            service.process.wait()


def free_port(wanted: int) -> int:
    """Give the wanted port of the loopback address if it is free, or else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceFailedError("there is no free port on 127.0.0.1")


def invoice(simulator_url: str) -> dict[str, int]:
    """Read the totals of the simulator's own invoice."""
    with urllib.request.urlopen(f"{simulator_url}/invoice?lines=0", timeout=5) as answer:  # noqa: S310 - our own
        totals: dict[str, int] = json.load(answer)
    return totals


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own
            return True
    except (urllib.error.URLError, OSError):
        return False
