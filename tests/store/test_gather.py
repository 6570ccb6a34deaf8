"""Many callers share one statement; each gets its own answer, its own error, and no row is lost on the way."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from penstock.settings import Settings
from penstock.store.db import async_engine
from penstock.store.gather import Gatherer
from workers.embedded import PostgresServer

INSERT = text("INSERT INTO workers (id, lease_until) VALUES (:id, now())")
SLEEP_FOR_AGES = 3600.0
Result = TypeVar("Result")


@dataclass
class Writing:
    """A write that keeps what it was called with and names its rows; None is a row that Postgres refuses."""

    batches: list[list[str | None]] = field(default_factory=list)

    def __call__(self, connection: Connection, rows: Sequence[str | None]) -> list[str]:
        self.batches.append(list(rows))
        for row in rows:
            connection.execute(INSERT, {"id": row})
        return [f"answer to {row}" for row in rows]


def run(settings: Settings, work: Callable[[AsyncEngine], Awaitable[Result]]) -> Result:
    """Run `work` on a loop with an engine of its own."""

    async def on_loop() -> Result:
        engine = async_engine(settings.require_database_url())
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(on_loop())


def written(engine: Engine) -> set[str]:
    with engine.begin() as connection:
        return set(connection.scalars(text("SELECT id FROM workers")))


def waiters(engine: Engine) -> int:
    """Count the transactions that wait for a lock."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")) or 0


def test_callers_share_one_statement_and_each_gets_its_own_answer(engine: Engine, settings: Settings) -> None:
    write = Writing()
    names = [f"w{number}" for number in range(100)]

    async def work(on: AsyncEngine) -> list[str]:
        gatherer = Gatherer(on, write, wait_s=0.05)
        return await asyncio.gather(*[gatherer.add(name) for name in names])

    assert run(settings, work) == [f"answer to {name}" for name in names]
    assert write.batches == [names]
    assert written(engine) == set(names)


def test_a_full_batch_does_not_wait_for_the_time(engine: Engine, settings: Settings) -> None:
    write = Writing()

    async def work(on: AsyncEngine) -> list[str]:
        gatherer = Gatherer(on, write, wait_s=SLEEP_FOR_AGES, most=4)
        return await asyncio.gather(*[gatherer.add(f"w{number}") for number in range(8)])

    assert run(settings, work) == [f"answer to w{number}" for number in range(8)]
    assert sorted(write.batches) == [[f"w{number}" for number in four] for four in (range(4), range(4, 8))]


def test_a_lone_caller_waits_only_for_the_time(engine: Engine, settings: Settings) -> None:
    write = Writing()

    async def work(on: AsyncEngine) -> list[str]:
        gatherer = Gatherer(on, write, wait_s=0.001, most=4)
        return [await gatherer.add("first"), await gatherer.add("second")]

    assert run(settings, work) == ["answer to first", "answer to second"]
    assert write.batches == [["first"], ["second"]]


def test_an_answer_comes_after_the_commit(engine: Engine, settings: Settings) -> None:
    async def work(on: AsyncEngine) -> set[str]:
        await Gatherer(on, Writing()).add("w")
        return await asyncio.to_thread(written, engine)

    assert run(settings, work) == {"w"}


def test_a_row_that_postgres_refuses_fails_alone(engine: Engine, settings: Settings) -> None:
    write = Writing()

    async def work(on: AsyncEngine) -> list[str | BaseException]:
        gatherer = Gatherer(on, write, wait_s=0.05)
        rows = ["a", None, "b", "a", "c"]
        return await asyncio.gather(*[gatherer.add(row) for row in rows], return_exceptions=True)

    answers = run(settings, work)

    assert [answer for answer in answers if isinstance(answer, str)] == [f"answer to {name}" for name in "abc"]
    assert [type(answer) for answer in (answers[1], answers[3])] == [IntegrityError, IntegrityError]
    assert "null value" in str(answers[1])
    assert "already exists" in str(answers[3])
    assert written(engine) == {"a", "b", "c"}


def test_a_row_that_the_write_itself_chokes_on_fails_alone(engine: Engine, settings: Settings) -> None:
    writing = Writing()

    def write(connection: Connection, rows: Sequence[str]) -> list[str]:
        if "bad" in rows:
            raise ValueError("bad row")
        return writing(connection, rows)

    async def work(on: AsyncEngine) -> list[str | BaseException]:
        gatherer = Gatherer(on, write, wait_s=0.05)
        return await asyncio.gather(*[gatherer.add(row) for row in ("a", "bad", "b")], return_exceptions=True)

    first, second, third = run(settings, work)

    assert (first, third) == ("answer to a", "answer to b")
    assert isinstance(second, ValueError)
    assert written(engine) == {"a", "b"}


def test_a_write_that_answers_too_little_leaves_nobody_waiting(engine: Engine, settings: Settings) -> None:
    def write(connection: Connection, rows: Sequence[str]) -> list[str]:
        return Writing()(connection, rows)[:-1]

    async def work(on: AsyncEngine) -> list[str | BaseException]:
        gatherer = Gatherer(on, write, wait_s=0.05)
        waiting = asyncio.gather(*[gatherer.add(row) for row in ("a", "b")], return_exceptions=True)
        return await asyncio.wait_for(waiting, 5)

    assert [type(answer) for answer in run(settings, work)] == [ValueError, ValueError]
    assert written(engine) == set()


def test_the_row_of_a_caller_that_is_cancelled_is_written_all_the_same(engine: Engine, settings: Settings) -> None:
    write = Writing()

    async def work(on: AsyncEngine) -> str:
        gatherer = Gatherer(on, write, wait_s=0.05)
        stopped = asyncio.create_task(gatherer.add("stopped"))
        other = asyncio.create_task(gatherer.add("other"))
        await asyncio.sleep(0)
        stopped.cancel()
        answer = await other
        assert stopped.cancelled()
        return answer

    assert run(settings, work) == "answer to other"
    assert write.batches == [["stopped", "other"]]
    assert written(engine) == {"stopped", "other"}


def test_callers_that_come_while_a_batch_is_written_are_in_the_next(engine: Engine, settings: Settings) -> None:
    write = Writing()

    async def work(on: AsyncEngine) -> list[str]:
        gatherer = Gatherer(on, write, wait_s=SLEEP_FOR_AGES, most=2)
        first = [asyncio.create_task(gatherer.add(name)) for name in ("a", "b")]
        await asyncio.sleep(0)
        later = [asyncio.create_task(gatherer.add(name)) for name in ("c", "d")]
        return await asyncio.gather(*first, *later)

    assert run(settings, work) == [f"answer to {name}" for name in "abcd"]
    assert sorted(write.batches) == [["a", "b"], ["c", "d"]]


def test_rows_that_come_one_by_one_queue_in_two_transactions_and_not_in_many(
    engine: Engine, settings: Settings
) -> None:
    """While somebody holds what the rows need, whoever comes waits for the next statement, and takes no connection."""
    names = [f"w{number}" for number in range(20)]

    async def work(on: AsyncEngine) -> tuple[int, list[str]]:
        write = Writing()
        gatherer = Gatherer(on, write, wait_s=0)
        with engine.begin() as holder:
            holder.execute(text("LOCK TABLE workers IN SHARE MODE"))
            waiting = []
            for name in names:
                waiting.append(asyncio.create_task(gatherer.add(name)))
                await asyncio.sleep(0)
            while await asyncio.to_thread(waiters, engine) < 2:
                await asyncio.sleep(0.01)
            taken = on.pool.checkedout()  # type: ignore[attr-defined]
        return taken, await asyncio.gather(*waiting)

    taken, answers = run(settings, work)

    assert taken == 2
    assert answers == [f"answer to {name}" for name in names]
    assert written(engine) == set(names)


def test_a_row_that_somebody_holds_does_not_keep_those_behind_it(engine: Engine, settings: Settings) -> None:
    async def work(on: AsyncEngine) -> list[str]:
        gatherer = Gatherer(on, Writing(), wait_s=0)
        with engine.connect() as holder:
            holder.execute(INSERT, {"id": "held"})
            held = asyncio.create_task(gatherer.add("held"))
            while not await asyncio.to_thread(waiters, engine):
                await asyncio.sleep(0.01)
            answers = [await gatherer.add(name) for name in ("a", "b")]
            assert not held.done()
            holder.rollback()
        return [*answers, await held]

    assert run(settings, work) == ["answer to a", "answer to b", "answer to held"]


def test_a_connection_that_is_cut_in_the_middle_of_a_statement_is_tried_again(
    engine: Engine, settings: Settings
) -> None:
    writing, cuts = Writing(), [1]

    def write(connection: Connection, rows: Sequence[str]) -> list[str]:
        answers = writing(connection, rows)
        if cuts:
            cuts.pop()
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return answers

    async def work(on: AsyncEngine) -> list[str]:
        gatherer = Gatherer(on, write, wait_s=0.05)
        return list(await asyncio.gather(gatherer.add("a"), gatherer.add("b")))

    assert run(settings, work) == ["answer to a", "answer to b"]
    assert writing.batches == [["a", "b"], ["a", "b"]]
    assert written(engine) == {"a", "b"}


def test_a_pool_whose_connections_are_all_taken_for_a_while_is_waited_for(engine: Engine, settings: Settings) -> None:
    async def on_loop() -> str:
        on = create_async_engine(settings.require_database_url(), pool_size=1, max_overflow=0, pool_timeout=0.01)
        taken = await on.connect()
        waiting = asyncio.create_task(Gatherer(on, Writing(), wait_s=0).add("w"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        await taken.close()
        answer = await waiting
        await on.dispose()
        return answer

    assert asyncio.run(on_loop()) == "answer to w"


def test_a_postgres_that_stays_away_is_told_to_every_caller_once_patience_ends(tmp_path: Path) -> None:
    async def on_loop() -> list[str | BaseException]:
        on = async_engine(f"postgresql+psycopg://postgres:@/postgres?host={tmp_path}")
        gatherer = Gatherer(on, Writing(), wait_s=0.05, patience_s=0.2)
        answers = await asyncio.gather(gatherer.add("a"), gatherer.add("b"), return_exceptions=True)
        await on.dispose()
        return list(answers)

    assert [type(answer) for answer in asyncio.run(on_loop())] == [OperationalError, OperationalError]


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Give a server that no other test uses, to be stopped and started."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def test_rows_wait_for_a_postgres_that_restarts_and_none_is_lost(own_postgres: PostgresServer) -> None:
    url = own_postgres.url.replace("postgresql://", "postgresql+psycopg://", 1)
    names = [f"w{number}" for number in range(20)]

    def write(connection: Connection, rows: Sequence[str]) -> list[str]:
        for row in rows:
            connection.execute(text("INSERT INTO names VALUES (:name) ON CONFLICT DO NOTHING"), {"name": row})
        return list(rows)

    async def work() -> tuple[list[str], list[str]]:
        on = async_engine(url)
        async with on.begin() as connection:
            await connection.execute(text("CREATE TABLE names (name text PRIMARY KEY)"))
        gatherer = Gatherer(on, write, most=5)
        before = [await gatherer.add("before")]
        await asyncio.to_thread(own_postgres.stop)
        waiting = asyncio.gather(*[gatherer.add(name) for name in names])
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        await asyncio.to_thread(own_postgres.start)
        answers = before + await waiting
        async with on.begin() as connection:
            stored = list(await connection.scalars(text("SELECT name FROM names")))
        await on.dispose()
        return answers, stored

    answers, stored = asyncio.run(work())

    assert answers == ["before", *names]
    assert sorted(stored) == sorted(answers)


def test_what_postgres_raised_is_what_the_caller_gets(engine: Engine, settings: Settings) -> None:
    async def work(on: AsyncEngine) -> str:
        return await Gatherer(on, Writing()).add(None)

    with pytest.raises(DBAPIError, match="null value"):
        run(settings, work)
    assert written(engine) == set()
