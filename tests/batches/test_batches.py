"""A batch through the client on a real Postgres: begun, broken off, resumed, paused, cancelled, exported."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from penstock.batches import rows as batches
from penstock.batches.batch import BatchState
from penstock.client import Client
from penstock.client.batch_input import CHARACTERS_A_CHUNK, BatchInput
from penstock.client.batches import BatchRequest
from penstock.client.doorbell import Doorbell
from penstock.errors import BatchTakenError, InvalidRequestError
from penstock.jobs import queries
from penstock.jobs.execution import Outcome
from penstock.reasons import Reason
from penstock.schemas import JobState
from penstock.settings import Settings
from tests.batches.conftest import REQUEST, BrokenOffError, broken_off, documents
from tests.batches.runs import end, run_some, states, succeed
from tests.jobs import rows
from workers.upkeep import tend


def test_every_item_becomes_a_job_of_the_lane_batch(client: Client) -> None:
    batch = client.batch("night", REQUEST, documents(5))
    assert (batch.state, batch.items, batch.is_loaded) == (BatchState.RUNNING, 5, True)
    progress = client.batch_progress("acme", "night")
    assert (progress.jobs, progress.refused) == ({JobState.QUEUED: 5}, 0)
    with client._engine.connect() as connection:
        found = connection.execute(text("SELECT lane, tier, batch_number FROM jobs ORDER BY batch_number")).all()
    assert [tuple(row) for row in found] == [("batch", "small", number) for number in range(1, 6)]


def test_the_same_command_again_adds_nothing(client: Client) -> None:
    first = client.batch("night", REQUEST, documents(5))
    assert client.batch("night", REQUEST, documents(5)) == first
    assert states(client) == {JobState.QUEUED: 5}


@pytest.mark.parametrize("after", [0, 1, 999, 1000, 1001, 2500])
def test_it_goes_on_where_it_was_broken_off(client: Client, after: int) -> None:
    items = documents(2600)
    with pytest.raises(BrokenOffError):
        client.batch("night", REQUEST, broken_off(items, after))
    stored = client.find_batch("acme", "night").items
    assert stored <= after
    assert not client.find_batch("acme", "night").is_loaded
    client.batch("night", REQUEST, items)
    assert states(client) == {JobState.QUEUED: 2600}
    with client._engine.connect() as connection:
        assert connection.scalar(text("SELECT count(DISTINCT batch_number) FROM jobs")) == 2600


def test_another_input_under_the_same_name_is_refused(client: Client) -> None:
    items = documents(1500)
    with pytest.raises(BrokenOffError):
        client.batch("night", REQUEST, broken_off(items, 1500))
    for other in ([{"document": "Other."}, *items[1:]], items[:999]):
        with pytest.raises(InvalidRequestError, match="its first 1000 items are not those that batch 'night'"):
            client.batch("night", REQUEST, other)
    assert states(client) == {JobState.QUEUED: 1000}


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, prompt="extract_metadata"),
        replace(REQUEST, prompt_version="1.0.0"),
        replace(REQUEST, tier="large"),
        replace(REQUEST, project="north"),
        replace(REQUEST, variables={"language": "French"}),
    ],
)
def test_another_request_under_the_same_name_is_refused(client: Client, other: BatchRequest) -> None:
    client.batch("night", REQUEST, documents(2))
    with pytest.raises(InvalidRequestError, match="was begun with another prompt, tier, project or variables"):
        client.batch("night", other, documents(2))
    assert states(client) == {JobState.QUEUED: 2}


def test_two_tenants_may_use_one_name(client: Client) -> None:
    client.batch("night", REQUEST, documents(2))
    client.batch("night", replace(REQUEST, tenant="globex"), documents(3))
    assert client.batch_progress("globex", "night").total == 3
    assert [batch.tenant for batch in client.batches("acme")] == ["acme"]
    assert len(client.batches()) == 2


def test_a_bad_item_is_told_by_its_number_and_stops_no_other(client: Client) -> None:
    items = documents(6)
    items[1] = {"document": ""}
    items[3] = {"document": "A report.", "tenant": "globex"}
    items[4] = {"document": "A report.", "variables": {"colour": "red"}}
    client.batch("night", REQUEST, items)
    assert states(client) == {JobState.QUEUED: 3}
    found = list(client.batch_errors("acme", "night"))
    assert [error.number for error in found] == [2, 4, 5]
    assert "tenant: it is the batch's" in found[1].reason
    assert "colour" in found[2].reason
    assert client.batch_progress("acme", "night").refused == 3


@pytest.mark.parametrize("name", ["", " night", "a\nb", "x" * 201, "ni\0ght"])
def test_a_name_that_is_none_is_refused(client: Client, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name: it is no name of a batch"):
        client.batch(name, REQUEST, documents(1))


@pytest.mark.parametrize(
    ("field", "value"), [("tenant", "ACME"), ("prompt", "nothing"), ("tier", "huge"), ("priority", 10)]
)
def test_a_request_that_is_wrong_begins_nothing(client: Client, field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        client.batch("night", replace(REQUEST, **{field: value}), documents(1))  # type: ignore[arg-type]
    assert client.batches() == []


def test_a_folder_is_loaded_by_the_length_of_its_documents(client: Client, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("A word. " * 125_000)
    given = BatchInput.open(client._intake, REQUEST, str(tmp_path), None)
    batch = replace(client.batch("night", REQUEST, []), is_loaded=False)
    chunks = [len(chunk.jobs) for chunk in given.chunks(batch)]
    assert sum(chunks) == 40
    assert max(chunks) <= CHARACTERS_A_CHUNK // 1_000_000 + 1


def test_two_loaders_of_one_batch_store_each_item_once(settings: Settings, client: Client) -> None:
    items = documents(5000)

    def load(_number: int) -> str:
        with Client(settings) as other:
            try:
                other.batch("night", REQUEST, items)
            except BatchTakenError:
                return "taken"
            return "loaded"

    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(load, range(3)))
    assert "loaded" in outcomes
    assert states(client) == {JobState.QUEUED: 5000}


@pytest.mark.parametrize("left", [0, 500])
def test_what_another_loader_stored_while_the_input_was_compared_is_not_passed_off_as_ours(
    settings: Settings, client: Client, left: int
) -> None:
    items = documents(1000 + left)
    with pytest.raises(BrokenOffError):
        client.batch("night", REQUEST, broken_off(items, 1000))

    def overtaken() -> Iterator[dict[str, Any]]:
        with Client(settings) as other:
            other.batch("night", REQUEST, items)
        yield from items
        yield {"document": "One more."}

    with pytest.raises(BatchTakenError, match="another process stores its input"):
        client.batch("night", REQUEST, overtaken(), max_cost=7)
    assert client.find_batch("acme", "night").max_nanodollars is None
    assert states(client) == {JobState.QUEUED: 1000 + left}


class TestPausing:
    def test_what_waits_is_paused_and_goes_on(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(5))
        running = run_some(engine, 2)
        client.pause_batch("acme", "night")
        assert states(client) == {JobState.PAUSED: 3, JobState.RUNNING: 2}
        assert run_some(engine, 5) == []
        client.resume_batch("acme", "night")
        assert states(client) == {JobState.QUEUED: 3, JobState.RUNNING: 2}
        succeed(engine, [*running, *run_some(engine, 5)])
        assert states(client) == {JobState.SUCCEEDED: 5}

    def test_what_comes_back_or_is_stored_meanwhile_is_paused_too(self, client: Client, engine: Engine) -> None:
        items = documents(1200)
        with pytest.raises(BrokenOffError):
            client.batch("night", REQUEST, broken_off(items, 1100))
        running = run_some(engine, 2)
        client.pause_batch("acme", "night")
        end(engine, running[:1], Outcome.RETRIED, reason=Reason.TIMEOUT)
        end(engine, running[1:], Outcome.DEFERRED, reason=Reason.LIMITED)
        client.batch("night", REQUEST, items)
        assert states(client) == {JobState.PAUSED: 1198, JobState.RETRYING: 1, JobState.QUEUED: 1}
        tend(engine, Doorbell(""))
        assert states(client) == {JobState.PAUSED: 1200}
        client.resume_batch("acme", "night")
        assert states(client) == {JobState.QUEUED: 1199, JobState.RETRYING: 1}

    def test_a_batch_of_the_night_waits_for_its_start(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(3), start=datetime.now(UTC) + timedelta(hours=2))
        assert states(client) == {JobState.PAUSED: 3}
        tend(engine, Doorbell(""))
        assert states(client) == {JobState.PAUSED: 3}
        rows.execute(engine, "UPDATE batches SET starts_at = now()")
        tend(engine, Doorbell(""))
        assert states(client) == {JobState.QUEUED: 3}

    def test_what_is_cancelled_ends_and_is_not_begun_again(self, client: Client, engine: Engine) -> None:
        items = documents(1200)
        with pytest.raises(BrokenOffError):
            client.batch("night", REQUEST, broken_off(items, 1100))
        succeed(engine, run_some(engine, 1))
        run_some(engine, 1)
        client.cancel_batch("acme", "night")
        assert states(client) == {JobState.SUCCEEDED: 1, JobState.CANCELLED: 999}
        tend(engine, Doorbell(""))
        with pytest.raises(BatchTakenError, match="batch 'night' of tenant 'acme' was cancelled"):
            client.batch("night", REQUEST, items)
        batch = client.find_batch("acme", "night")
        assert (batch.state, batch.items) == (BatchState.CANCELLED, 1000)
        assert batch.ended_at is not None
        with pytest.raises(InvalidRequestError, match="batch 'night' is cancelled"):
            client.resume_batch("acme", "night")


class TestRaces:
    def test_a_job_that_is_cancelled_while_its_batch_goes_on_stays_cancelled(
        self, client: Client, engine: Engine
    ) -> None:
        batch = client.batch("night", REQUEST, documents(20_000), start=datetime.now(UTC) + timedelta(hours=1))
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM ANALYZE jobs"))
        cancelled: list[UUID] = []
        is_over = Event()

        def cancel() -> None:
            for number in range(1_000, 5_000, 10):
                if is_over.is_set():
                    return
                with engine.begin() as connection:
                    cancelled.extend(queries.cancel(connection, [batches.job_id(batch.id, number)]))

        with ThreadPoolExecutor(1) as threads:
            cancelling = threads.submit(cancel)
            with engine.begin() as connection:
                batches.unpark(connection, batch.id, most=5_000)
            is_over.set()
            cancelling.result()
        assert cancelled
        with engine.connect() as connection:
            assert set(queries.states(connection, cancelled).values()) == {JobState.CANCELLED}
