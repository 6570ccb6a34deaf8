"""Pages that Flower shows beside its own. It must not know how a batch is run.

A page is a handler of Flower's kind and a template that extends Flower's; the bar at the top gets a link to each.
"""

from asyncio import get_running_loop
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from uuid import UUID

import flower
from flower.urls import handlers, settings
from flower.views import BaseHandler
from sqlalchemy import Connection, Engine
from tornado.template import DictLoader
from tornado.web import authenticated, url

from penstock.batches import rows
from penstock.batches.batch import Batch, Progress
from penstock.schemas import JobState, dollars
from penstock.settings import default_settings
from penstock.store.db import sync_engine

SHOWN = 100
READ_AGAIN = timedelta(minutes=1)
"""How old what is shown of an ended batch may be: its calls may still be settled, its dead jobs discarded."""
OWN = Path(__file__).parent
FLOWERS = Path(flower.__file__).parent / "templates"
END_OF_LINKS = "      </ul>\n"
LINK = """        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'batches' %} active{% end %}"
            href="{{ reverse_url('batches') }}">Batches</a>
        </li>
"""


class Look:
    """Reads how far batches are, on connections of its own; those that have ended once in a while."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._ended: dict[tuple[UUID, datetime], Progress] = {}

    @cached_property
    def engine(self) -> Engine:
        """Connect when the page is first asked for."""
        return sync_engine(default_settings().require_database_url())

    def batches(self) -> list[Progress]:
        """Give the newest batches."""
        with self.engine.connect() as connection:
            found = [self._progress(connection, batch) for batch in rows.find_all(connection, None, most=SHOWN)]
        self._ended = {(each.batch.id, each.batch.ended_at): each for each in found if each.batch.ended_at is not None}
        return found

    def _progress(self, connection: Connection, batch: Batch) -> Progress:
        known = None if batch.ended_at is None else self._ended.get((batch.id, batch.ended_at))
        if known is None or known.now < datetime.now(UTC) - READ_AGAIN:
            return rows.progress(connection, batch)
        return known


look = Look()


class BatchesView(BaseHandler):  # type: ignore[misc]  # flower has no types
    """`/batches`: how far each batch is, what it has cost, and when it will have ended."""

    @authenticated
    async def get(self) -> None:
        """Show the newest batches; the browser asks again every few seconds."""
        found = await get_running_loop().run_in_executor(None, look.batches)
        self.render("batches.html", batches=found, JobState=JobState, dollars=dollars, timedelta=timedelta)


def templates() -> dict[str, str]:
    """Give Flower's templates and ours by name, with the links of ours in the bar; raise LookupError if it has none."""
    found = {
        str(path.relative_to(folder)): path.read_text() for folder in (FLOWERS, OWN) for path in folder.rglob("*.html")
    }
    bar = found["navbar.html"]
    if END_OF_LINKS not in bar:
        raise LookupError("Flower's navbar.html has changed: there is no list of links in it")
    return found | {"navbar.html": bar.replace(END_OF_LINKS, LINK + END_OF_LINKS, 1)}


def add() -> None:
    """Have Flower show the pages, as soon as it starts."""
    handlers.insert(0, url(r"/batches", BatchesView, name="batches"))
    settings["template_loader"] = DictLoader(templates())
