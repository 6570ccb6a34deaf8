"""Many small writes made into one. It must not know what is written.

Jobs of one process that do the same step within a few milliseconds share one multi-row statement and one commit, and
so do all that come while two are being written: more would queue for the same rows, each with a connection that others
need. The second goes on while the first waits for a row that somebody holds.
While Postgres is away, the rows wait here and are tried again: `write` must bear to be repeated, since a connection
that breaks during a commit hides whether it happened.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.store.db import is_away

Row = TypeVar("Row")
Answer = TypeVar("Answer")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

MOST_IN_FLIGHT = 2

Write = Callable[[Connection, Sequence[Row]], Sequence[Answer]]


class Gatherer(Generic[Row, Answer]):
    """Calls `write` with the rows of all who asked within `wait_s`; `write` answers each row, in order."""

    def __init__(
        self,
        engine: AsyncEngine,
        write: Write[Row, Answer],
        *,
        wait_s: float = 0.003,
        most: int = 200,
        patience_s: float = 60.0,
    ) -> None:
        """Write on `engine`, at most `most` rows a statement; raise what Postgres raised after `patience_s`."""
        self._engine = engine
        self._write = write
        self._wait_s = wait_s
        self._most = most
        self._patience_s = patience_s
        self._waiting: list[tuple[Row, asyncio.Future[Answer]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushes: set[asyncio.Task[None]] = set()

    async def add(self, row: Row) -> Answer:
        """Write `row` together with others and give the answer to it, once it is committed.

        A caller that is cancelled meanwhile does not take its row back.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, future))
        if len(self._waiting) >= self._most:
            self._begin()
        elif self._timer is None and len(self._flushes) < MOST_IN_FLIGHT:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._begin)
        return await future

    async def drain(self) -> None:
        """Write what waits, and return when nothing is being written any more."""
        self._begin()
        while self._flushes:
            await asyncio.wait(set(self._flushes))

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and len(self._flushes) < MOST_IN_FLIGHT:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            flush = asyncio.get_running_loop().create_task(self._commit(batch))
            self._flushes.add(flush)
            flush.add_done_callback(self._end)

    def _end(self, flush: asyncio.Task[None]) -> None:
        self._flushes.discard(flush)
        if not flush.cancelled():
            self._begin()

    async def _commit(self, batch: list[tuple[Row, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._transaction([row for row, _ in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
            await self._commit_apart(batch, error)
        except BaseException as error:
            _fail(batch, error)
            raise
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _commit_apart(self, batch: list[tuple[Row, asyncio.Future[Answer]]], error: Exception) -> None:
        """Write the rows one by one, so that one that is refused does not take the others with it."""
        if len(batch) == 1 or is_away(error):
            _fail(batch, error)
            return
        for entry in batch:
            await self._commit([entry])

    async def _transaction(self, rows: Sequence[Row]) -> Sequence[Answer]:
        """Commit the rows; while Postgres is away, try again with growing pauses until `patience_s` has passed."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with self._engine.begin() as connection:
                    return await connection.run_sync(self._answered, rows)
            except (DBAPIError, PoolTimeoutError) as error:
                if not is_away(error) or loop.time() + pause_s > gives_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _answered(self, connection: Connection, rows: Sequence[Row]) -> Sequence[Answer]:
        answers = self._write(connection, rows)
        if len(answers) != len(rows):
            raise ValueError(f"the write gave {len(answers)} answers to {len(rows)} rows; nothing was committed")
        return answers


def _fail(batch: list[tuple[Row, asyncio.Future[Answer]]], error: BaseException) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
