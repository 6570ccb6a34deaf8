"""Works on parcels in a thread of the upkeep worker; any number may run at once. It must not know a step.

LiteLLM is loaded when the first batch wishes for a file: until then the thread costs a query a second.
"""

import asyncio
from contextlib import suppress
from itertools import count
from threading import Event, Thread

from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import telemetry
from penstock.jobs import parcels
from penstock.overnight import steps
from penstock.overnight.desk import Desk, Terms
from penstock.settings import Settings
from penstock.store.db import async_engine, is_away

PASS_S = 1.0
PASSES_A_LOOK = 10
"""How many passes there are to one that looks through the batches for jobs that wait for a file."""
REST_S = 60.0
"""How long to wait after a fault of ours, such as a missing key: it will be there again in a second."""


class Overnight:
    """The thread, with a loop of its own. A stop breaks off whatever is being done: the next process goes on."""

    def __init__(self, settings: Settings, terms: Terms | None = None) -> None:
        """Work by these settings, and by a provider's terms."""
        self._settings = settings
        self._terms = terms or Terms()
        self._began = Event()
        self._thread = Thread(target=self._run, name="overnight")

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._began.wait()

    def stop(self) -> None:
        """Stop, and return when that is done."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._begin())

    async def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(keep_working(self._settings, self._terms))
        self._began.set()
        await self._task


async def keep_working(settings: Settings, terms: Terms) -> None:
    """Take the steps that are due, until cancelled; a service that is away is waited for."""
    engine = async_engine(settings.require_database_url(), connections=1)
    desk: Desk | None = None
    try:
        for number in count():
            pause_s = PASS_S
            try:
                if desk is None and await _is_wanted(engine):
                    desk = _open_desk(settings, terms)
                if desk is not None:
                    await steps.work(desk, looks_for_wishes=number % PASSES_A_LOOK == 0)
            except Exception as error:  # noqa: BLE001 - a loop must not end in silence while its process goes on
                pause_s = _tell(error)
            await asyncio.sleep(pause_s)
    finally:
        if desk is not None:
            await desk.files.close()
            await desk.house.close()
        await engine.dispose()


async def _is_wanted(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return await connection.run_sync(parcels.are_wanted)


def _open_desk(settings: Settings, terms: Terms) -> Desk:
    """Furnish a desk; raise ConfigurationError."""
    from penstock.house import build_house
    from penstock.providers.litellm import LiteLLMProvider
    from penstock.providers.litellm_batches import LiteLLMBatchProvider

    return Desk(build_house(settings, LiteLLMProvider(), "overnight"), LiteLLMBatchProvider(), terms)


def _tell(error: Exception) -> float:
    """Tell what went wrong, and give the seconds to wait."""
    if is_away(error):
        telemetry.emit("service.unavailable", service="overnight", error=type(error).__name__, retry_s=PASS_S)
        return PASS_S
    telemetry.failed(error)
    return REST_S
