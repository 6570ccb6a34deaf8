"""What can happen to Penstock alone, and what is written down of it. It must not work out figures."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text

from bench.chaos.conductor import Action
from bench.chaos.events import Events
from bench.chaos.site import RUNNING, Site
from bench.chaos.texts import poison

MOST_REPLAYED = 50
NOW = text("SELECT now()")
DEAD = text("""
    SELECT id FROM jobs WHERE state = 'dead' AND reason <> 'budget_exhausted' AND id <> ALL(CAST(:poisons AS uuid[]))
    LIMIT :most
""")
"""A refusal for want of money is final until there is more."""


@dataclass(frozen=True)
class Killed:
    """A run whose worker was killed, by job and fence, and when."""

    job_id: UUID
    fence: int
    at: datetime


@dataclass
class Notes:
    """What is known only to who did it."""

    killed: list[Killed] = field(default_factory=list)
    replayed: list[tuple[UUID, datetime]] = field(default_factory=list)
    poisons: list[UUID] = field(default_factory=list)
    outages: list[datetime] = field(default_factory=list)
    """When Postgres or upkeep was killed: recovery waits for them."""


class PenstockEvents(Events):
    """All of it."""

    def __init__(self, site: Site, later: Callable[[float, Callable[[], None]], None]) -> None:
        """Begin with empty notes."""
        super().__init__(site, later)
        self.notes = Notes()
        self._site = site

    def actions(self) -> dict[str, Action]:
        """Name everything."""
        site = self._site
        return super().actions() | {
            "kill_feeder": lambda: site.feeder.is_running and site.feeder.kill() > 0,
            "kill_upkeep": self.kill_upkeep,
            "restart_postgres": self.restart_postgres,
            "poison": self.poison,
            "replay": lambda: self.replay() > 0,
        }

    def killed(self, pid: int) -> None:
        """Write down what it was running."""
        with self._site.engine.connect() as connection:
            rows = connection.execute(RUNNING, {"pid": str(pid)}).all()
        self.notes.killed += [Killed(row.id, row.fence, row.at) for row in rows]

    def kill_upkeep(self) -> bool:
        """Kill who takes jobs from dead workers."""
        if not self._site.upkeep.is_running:
            return False
        self.notes.outages.append(datetime.now(UTC))
        self._site.upkeep.kill()
        return True

    def restart_postgres(self) -> None:
        """Kill Postgres and start it."""
        self.notes.outages.append(datetime.now(UTC))
        self._site.databases.restart_postgres()

    def poison(self) -> None:
        """Submit a job that kills who runs it."""
        number = len(self.notes.poisons)
        job_id = self._site.client.submit_many([poison(number)])[0]
        self.notes.poisons.append(job_id)
        with (self._site.home / "poison.jsonl").open("a") as file:
            file.write(json.dumps({"key": f"poison-{number}", "id": str(job_id)}) + "\n")

    def replay(self) -> int:
        """Queue some dead letters anew, of those that can end well, and give their number."""
        values = {"poisons": [str(job_id) for job_id in self.notes.poisons], "most": MOST_REPLAYED}
        with self._site.engine.connect() as connection:
            dead = list(connection.scalars(DEAD, values))
        ids = self._site.client.replay(dead)
        if ids:
            with self._site.engine.connect() as connection:
                now = connection.scalar(NOW)
            assert isinstance(now, datetime)
            self.notes.replayed += [(job_id, now) for job_id in ids]
        return len(ids)
