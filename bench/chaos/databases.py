"""Postgres and Redis, which can be killed and started again. It must not know who uses them."""

from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis

from workers.embedded import EmbeddedServices


class Databases:
    """Both servers, or Redis alone."""

    def __init__(self, home: Path, *, postgres: bool = True) -> None:
        """Keep their data in `home`; start nothing yet."""
        self._services = EmbeddedServices(home)
        self._folder = home / "postgres"
        self._with_postgres = postgres

    def __enter__(self) -> Self:
        """Start them."""
        self._services.start(postgres=self._with_postgres)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop them."""
        self._services.stop()

    @property
    def broker_url(self) -> str:
        """Give Redis's address for kombu."""
        return self._services.redis.url

    def restart_redis(self) -> None:
        """Kill Redis with -9 and start it on what its file has."""
        self._services.redis.kill()
        self._services.redis.start()

    def flush_redis(self) -> None:
        """Empty Redis."""
        with redis.Redis(unix_socket_path=str(self._services.redis.socket_path)) as client:
            client.flushall()

    def restart_postgres(self) -> None:
        """Kill every process of Postgres with -9 and start it on what its log has."""
        pid = int((self._folder / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)
        self._services.postgres.stop()
        self._services.postgres.start()
