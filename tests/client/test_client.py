"""The producer's door on a real Postgres and a real Redis: what is accepted is a row, and its message holds no text."""

import base64
import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from penstock.client import Client
from penstock.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobCancelledError,
    JobDeadError,
    JobNotFoundError,
    Reason,
    WaitTimeoutError,
)
from penstock.jobs.queries import Filter
from penstock.schemas import JobState, Lane
from penstock.settings import Settings
from workers.embedded import RedisServer

MARKER = "Mr. Bennet owes 4,711 pounds"
SMALL: dict[str, Any] = {"tenant": "acme", "prompt": "classify_document", "document": MARKER}


@pytest.fixture
def client(settings: Settings, engine: Engine, broker: redis.Redis) -> Iterator[Client]:
    """Give a client on empty services."""
    with Client(settings) as client:
        yield client


def changed(settings: Settings, **values: object) -> Settings:
    """Give the same settings with other values."""
    return Settings.model_validate({**dict(settings), **values})


def run_sql(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def states(engine: Engine) -> list[tuple[str, str, int]]:
    """Count the jobs by lane and state."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT lane, state, count(*) FROM jobs GROUP BY 1, 2 ORDER BY 1, 2"))
        return [(lane, state, count) for lane, state, count in rows]


def messages(broker: redis.Redis, queue: str) -> list[dict[str, Any]]:
    return [json.loads(message) for message in broker.lrange(queue, 0, -1)]


def everything(broker: redis.Redis) -> str:
    """Read every key of every database of the broker, whatever its type, with the bodies of messages decoded."""
    found = []
    for database in range(16):
        broker.select(database)
        found += [f"{key} {value_of(broker, str(key))}" for key in broker.scan_iter()]
    broker.select(0)
    whole = "\n".join(found)
    bodies = [base64.b64decode(body).decode() for body in re.findall(r'"body": ?"([A-Za-z0-9+/=]+)"', whole)]
    return "\n".join([whole, *bodies])


def value_of(broker: redis.Redis, key: str) -> object:
    match broker.type(key):
        case "list":
            return broker.lrange(key, 0, -1)
        case "set":
            return broker.smembers(key)
        case "hash":
            return broker.hgetall(key)
        case "zset":
            return broker.zrange(key, 0, -1, withscores=True)
        case _:
            return broker.get(key)


def end(engine: Engine, job_id: UUID, state: str, **values: str) -> None:
    """End a job as a worker would."""
    run_sql(
        engine,
        "UPDATE jobs SET state = :state, reason = :reason, detail = :detail, ended_at = now() WHERE id = :id",
        id=job_id,
        state=state,
        reason=values.get("reason"),
        detail=values.get("detail"),
    )
    if state == "succeeded":
        run_sql(engine, "INSERT INTO results VALUES (:id, :text, 'asked', 'served')", id=job_id, text=values["text"])


def test_job_is_a_row_and_its_message_has_its_id_and_no_text(
    client: Client, engine: Engine, broker: redis.Redis
) -> None:
    job_id = client.submit(**SMALL, document_name="bennet.txt", metadata={"case": MARKER})
    job = client.get(job_id)
    assert (job.state, job.tier, job.lane, job.attempts) == (JobState.RELEASED, "small", Lane.INTERACTIVE, 0)
    assert (job.document_name, job.metadata, job.cost_nanodollars) == ("bennet.txt", {"case": MARKER}, 0)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT job_id, document FROM payloads")).all() == [(job_id, MARKER)]
    [message] = messages(broker, "small.interactive")
    assert message["headers"]["id"] == str(job_id)
    assert message["headers"]["task"] == "penstock.attempt"
    assert str(job_id) in everything(broker)
    assert "classify_document@1.0.0" in everything(broker)
    assert "4,711" not in everything(broker)
    assert "bennet" not in everything(broker)


def test_encoded_body_of_a_message_holds_identifiers_alone(client: Client, broker: redis.Redis) -> None:
    client.submit(**SMALL)
    [message] = messages(broker, "small.interactive")
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert args == []
    assert kwargs == {
        "tenant": "acme",
        "tier": "small",
        "lane": "interactive",
        "prompt": "classify_document@1.0.0",
    }


def test_batch_waits_as_a_row_without_a_message(client: Client, engine: Engine, broker: redis.Redis) -> None:
    client.submit(**SMALL, lane=Lane.BATCH)
    client.submit(**SMALL, lane="batch")
    assert states(engine) == [("batch", "queued", 2)]
    assert broker.dbsize() == 0


def test_interactive_jobs_beyond_the_window_wait_as_rows(
    settings: Settings, engine: Engine, broker: redis.Redis
) -> None:
    with Client(changed(settings, interactive_window=2)) as client:
        client.submit(**{**SMALL, "tenant": "other"})
        for _ in range(3):
            client.submit(**SMALL)
        client.submit(**SMALL, tier="large")
    assert states(engine) == [("interactive", "queued", 1), ("interactive", "released", 4)]
    assert (broker.llen("small.interactive"), broker.llen("large.interactive")) == (3, 1)


def test_job_in_the_callers_transaction_exists_when_the_caller_commits(
    client: Client, engine: Engine, broker: redis.Redis
) -> None:
    with engine.begin() as connection:
        job_id = client.submit(**SMALL, connection=connection)
        with pytest.raises(JobNotFoundError):
            client.get(job_id)
    assert client.get(job_id).state is JobState.QUEUED
    assert broker.dbsize() == 0


def test_job_in_a_transaction_that_is_rolled_back_never_was(client: Client, engine: Engine) -> None:
    with engine.connect() as connection:
        client.submit(**SMALL, connection=connection)
        connection.rollback()
    assert states(engine) == []


def test_refused_batch_leaves_nothing_in_the_callers_transaction(client: Client, engine: Engine) -> None:
    client.submit(**SMALL, idempotency_key="k")
    with engine.begin() as connection:
        with pytest.raises(IdempotencyConflictError):
            client.submit_many([SMALL, {**SMALL, "document": "other", "idempotency_key": "k"}], connection=connection)
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 1
    assert states(engine) == [("interactive", "released", 1)]


def test_repeat_of_a_key_gives_the_first_job_and_no_second_message(
    client: Client, engine: Engine, broker: redis.Redis
) -> None:
    first = client.submit(**SMALL, idempotency_key="k")
    assert client.submit(**SMALL, idempotency_key="k") == first
    assert client.submit(**SMALL, idempotency_key="k", priority=9, metadata={"try": "3"}) == first
    assert client.submit(**{**SMALL, "tenant": "other"}, idempotency_key="k") != first
    assert states(engine) == [("interactive", "released", 2)]
    assert broker.llen("small.interactive") == 2


def test_repeat_within_one_call_gives_the_same_job(client: Client, engine: Engine) -> None:
    one, two = client.submit_many([{**SMALL, "idempotency_key": "k"}] * 2)
    assert one == two
    assert states(engine) == [("interactive", "released", 1)]


def test_thousand_jobs_are_accepted_at_once_in_order(client: Client, engine: Engine, broker: redis.Redis) -> None:
    ids = client.submit_many({**SMALL, "metadata": {"n": str(n)}} for n in range(1000))
    assert len(set(ids)) == 1000
    assert client.get(ids[731]).metadata == {"n": "731"}
    assert states(engine) == [("interactive", "queued", 936), ("interactive", "released", 64)]
    assert {message["headers"]["id"] for message in messages(broker, "small.interactive")} == set(map(str, ids[:64]))


def test_none_of_many_is_accepted_when_one_is_refused_and_the_error_says_which(
    client: Client, engine: Engine, broker: redis.Redis
) -> None:
    requests = [SMALL, SMALL, {**SMALL, "tenant": "ACME"}, SMALL]
    with pytest.raises(InvalidRequestError) as caught:
        client.submit_many(requests)
    assert caught.value.field == "requests[2].tenant"
    assert states(engine) == []
    assert broker.dbsize() == 0


def test_many_are_written_in_order_and_none_is_seen_before_all_are(client: Client, engine: Engine) -> None:
    seen: list[int] = []

    def requests() -> Iterator[dict[str, Any]]:
        for number in range(4500):
            if number % 1000 == 0:
                with engine.connect() as connection:
                    seen.append(connection.scalar(text("SELECT count(*) FROM jobs")) or 0)
            yield {**SMALL, "lane": "batch", "metadata": {"n": str(number)}}

    ids = client.submit_many(requests())
    assert seen == [0] * 5
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, metadata ->> 'n' FROM jobs")).all()
    assert {(job_id, str(number)) for number, job_id in enumerate(ids)} == set(map(tuple, rows))


def test_a_request_that_is_refused_late_leaves_none_of_the_thousands_before_it(client: Client, engine: Engine) -> None:
    requests = [{**SMALL, "lane": "batch"}] * 3456 + [{**SMALL, "tenant": "ACME"}]
    with pytest.raises(InvalidRequestError) as caught:
        client.submit_many(requests)
    assert caught.value.field == "requests[3456].tenant"
    assert states(engine) == []
    assert len(client.submit_many(requests[:-1])) == 3456


def test_an_iterator_that_fails_leaves_none_and_its_error_is_told(client: Client, engine: Engine) -> None:
    def requests() -> Iterator[dict[str, Any]]:
        yield from [{**SMALL, "lane": "batch"}] * 2500
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        client.submit_many(requests())
    assert states(engine) == []


def test_keys_are_repeats_across_chunks_and_calls(client: Client, engine: Engine) -> None:
    requests = [{**SMALL, "lane": "batch", "idempotency_key": f"k{number % 1500}"} for number in range(3000)]
    first = client.submit_many(requests)
    assert first[:1500] == first[1500:]
    assert client.submit_many(requests) == first
    assert states(engine) == [("batch", "queued", 1500)]


def test_no_requests_make_no_jobs(client: Client, engine: Engine) -> None:
    assert client.submit_many([]) == []
    assert states(engine) == []


def test_wait_gives_the_result_of_a_job_that_ends_meanwhile(client: Client, engine: Engine) -> None:
    job_id = client.submit(**SMALL)
    looked = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_all, [job_id], timeout_s=20, progress=lambda _: looked.set())
        assert looked.wait(10)
        end(engine, job_id, "succeeded", text="a deed")
        assert waiting.result() == {job_id: JobState.SUCCEEDED}
    job = client.wait(str(job_id))
    assert (job.result, job.model_asked, job.model_served) == ("a deed", "asked", "served")


def test_wait_ends_on_time_and_leaves_the_job_as_it_is(client: Client) -> None:
    job_id = client.submit(**SMALL)
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError) as caught:
        client.wait(job_id, timeout_s=0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert str(caught.value) == "1 of 1 jobs had not ended after 0.3 s; they go on"
    assert client.get(job_id).state is JobState.RELEASED


def test_wait_on_a_dead_job_says_why(client: Client, engine: Engine) -> None:
    job_id = client.submit(**SMALL)
    end(engine, job_id, "dead", reason="content_policy", detail="HTTP 400")
    with pytest.raises(JobDeadError) as caught:
        client.wait(job_id, timeout_s=5)
    assert (caught.value.job_id, caught.value.reason, caught.value.detail) == (
        str(job_id),
        Reason.CONTENT_POLICY,
        "HTTP 400",
    )


def test_wait_on_a_cancelled_job_says_so(client: Client) -> None:
    job_id = client.submit(**SMALL)
    assert client.cancel(job_id) == [job_id]
    with pytest.raises(JobCancelledError):
        client.wait(job_id, timeout_s=5)


def test_job_that_does_not_exist_is_not_found(client: Client) -> None:
    unknown = uuid4()
    for look in (client.get, client.wait):
        with pytest.raises(JobNotFoundError, match=str(unknown)):
            look(unknown)


def test_cancel_ends_what_lives_and_nothing_else(client: Client, engine: Engine) -> None:
    live, done = client.submit(**SMALL), client.submit(**SMALL)
    end(engine, done, "succeeded", text="kept")
    assert client.cancel(live, str(done), uuid4()) == [live]
    assert client.cancel(live) == []
    assert client.get(live).state is JobState.CANCELLED
    assert client.get(done).result == "kept"


def test_dead_jobs_are_found_replayed_and_discarded(client: Client, engine: Engine) -> None:
    first, second = client.submit_many([SMALL, SMALL])
    for job_id in (first, second):
        end(engine, job_id, "dead", reason="timeout", detail="")
    assert {job.id for job in client.find(Filter(state=JobState.DEAD, tenant="acme"))} == {first, second}
    assert client.find(Filter(tenant="other")) == []
    assert client.find(Filter(since=datetime.now(UTC) + timedelta(hours=1))) == []
    assert client.replay([first]) == [first]
    assert client.replay([first]) == []
    assert client.discard([first, second]) == [second]
    assert (client.get(first).state, client.get(second).state) == (JobState.QUEUED, JobState.CANCELLED)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+socket:///nowhere/redis.sock", "amqp://127.0.0.1:1//"])
def test_job_is_accepted_soon_while_the_broker_is_away(settings: Settings, engine: Engine, url: str) -> None:
    with Client(changed(settings, broker_url=url)) as client:
        began = time.monotonic()
        job_id = client.submit(**SMALL)
        assert time.monotonic() - began < 12
    assert states(engine) == [("interactive", "released", 1)]
    with Client(settings) as client:
        assert client.get(job_id).tenant == "acme"


def test_job_is_accepted_when_the_broker_dies_or_is_full_between_two_jobs(settings: Settings, engine: Engine) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        with Client(changed(settings, broker_url=f"redis+socket://{server.socket_path}")) as client:
            client.submit(**SMALL)
            control = redis.Redis(unix_socket_path=str(server.socket_path))
            control.config_set("maxmemory", 1)
            client.submit(**SMALL)
            control.config_set("maxmemory", 0)
            assert control.llen("small.interactive") == 1
            control.close()
            server.kill()
            client.submit(**SMALL)
    assert states(engine) == [("interactive", "released", 3)]


def test_postgres_away_is_a_clear_error(settings: Settings) -> None:
    away = changed(settings, database_url="postgresql://127.0.0.1:1/penstock")
    with Client(away) as client, pytest.raises(OperationalError, match="Connection refused"):
        client.submit(**SMALL)


def test_postgres_that_does_not_answer_is_given_up(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"postgresql://127.0.0.1:{deaf.getsockname()[1]}/penstock"
        with Client(changed(settings, database_url=url)) as client:
            began = time.monotonic()
            with pytest.raises(OperationalError, match="timeout expired"):
                client.submit(**SMALL)
            assert time.monotonic() - began < 12


@pytest.mark.parametrize(
    ("name", "url"), [("database_url", "mysql://localhost/x"), ("database_url", "localhost"), ("broker_url", "sqs://x")]
)
def test_address_that_is_none_is_refused_by_its_variable(settings: Settings, name: str, url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(changed(settings, **{name: url}))
    assert caught.value.place == f"PENSTOCK_{name.upper()}"
    assert url not in str(caught.value)


def test_threads_share_a_client(client: Client, engine: Engine, broker: redis.Redis) -> None:
    def submit_some(tenant: str) -> list[UUID]:
        return [client.submit(**{**SMALL, "tenant": tenant}) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        ids = [job_id for some in pool.map(submit_some, [f"tenant-{n}" for n in range(8)]) for job_id in some]
    assert len(set(ids)) == 160
    assert states(engine) == [("interactive", "released", 160)]
    sent = [message["headers"]["id"] for message in messages(broker, "small.interactive")]
    assert sorted(sent) == sorted(map(str, ids))
