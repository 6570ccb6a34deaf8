"""Canaries: a marker in each text of each job of three tenants, and every place where a foreign one could come out."""

import ast
import base64
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis
from celery import Celery
from sqlalchemy import Engine, TextClause, text

from penstock import cli
from penstock.client import Client
from penstock.money.budgets import Budget, Period, Unit
from penstock.schemas import Job, JobState
from penstock.settings import default_settings, load_settings
from tests.conftest import ROOT
from workers.stack import Stack

CONFIG = Path(__file__).parent / "config"
TENANTS = ("acme", "globex", "initech")
TEXT = "The file {} is public. A meeting will be held on 4 May 2017 in Denver. Comments are due by 1 June 2017."
MARKER = re.compile(rb"CANARY-[a-z]+-([a-z]+)-([0-9a-f]{32})")
TRACE = b"CANARY"
BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")
PATIENCE_S = 30.0
LOOK_S = 0.05
ALL = 1_000
BATCH = 10
MEDIUM_FAILURES = 3
"""How often a job of tier medium may fail."""
CLOSED = "closed"
"""A project that may spend nothing."""

AT_CELERYS_DOOR = ("LPUSH celery ", "HSET unacked ")
"""The commands by which a broker takes and gives a request that is not a row yet."""
END_OF_WATCH = "end of watch"
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
DATABASES = 16
READ: dict[str, Callable[[Any, bytes], object]] = {
    "string": lambda client, key: client.get(key),
    "list": lambda client, key: client.lrange(key, 0, -1),
    "hash": lambda client, key: client.hgetall(key),
    "set": lambda client, key: client.smembers(key),
    "zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    "stream": lambda client, key: client.xrange(key),
    "none": lambda _client, _key: "it is gone by now",
}
"""How a value of Redis is read, by its type."""

FOUND = text("SELECT count(*) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))")
TOLD = text("SELECT count(*) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND announced")
ENDS = {"SUCCESS", "FAILURE", "REVOKED"}
"""The states of a task in Flower that are ends."""
TABLES = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
ROWS = "SELECT {owner} AS owner, to_jsonb(t)::text AS row FROM {table} AS t"
OWNERS = {
    "jobs": "t.id",
    "payloads": "t.job_id",
    "attempts": "t.job_id",
    "answers": "t.job_id",
    "results": "t.job_id",
    "ledger": "t.job_id",
    "ledger_corrections": "(SELECT job_id FROM ledger WHERE ledger.call_id = t.call_id)",
}
"""Where a row says which job's it is; the rows of other tables are no job's."""
POOLS = {"small-1", "medium-1"}
LOGS = {f"{name}.log" for name in POOLS | {"upkeep", "feeder", "flower", "simulator", "redis"}}
PAGES = ("/", "/tasks", "/api/tasks", "/api/workers?refresh=1", "/broker", "/metrics")
DATATABLE = {
    "draw": "1",
    "start": "0",
    "length": str(ALL),
    "search[value]": "",
    "order[0][column]": "0",
    "order[0][dir]": "asc",
    "columns[0][data]": "name",
}
MONEY = (
    ("usage",),
    ("budgets", "list"),
    *(("usage", "--by", by) for by in ("day", "tier", "prompt", "model")),
    *(("usage", "--tenant", tenant) for tenant in TENANTS),
)


def fault(name: str, count: int = len(TENANTS), model: str = "sim-medium", **parameters: object) -> dict[str, object]:
    """Write a fault of the provider's script that strikes one call of each tenant."""
    return {"name": name, "model": model, "count": count, **parameters}


@dataclass(frozen=True)
class Way:
    """What is submitted for each tenant, how the provider misbehaves, and in what that is to end."""

    name: str
    state: JobState
    reason: str | None = None
    faults: Sequence[Mapping[str, object]] = ()
    fields: Mapping[str, object] = field(default_factory=dict)


CLASSIFY: dict[str, object] = {"prompt": "classify_document", "variables": {}}
WITHOUT_FALLBACK = {"prompt_version": "1.1.0"}
WITHOUT_A_MODEL = {"tier": "small", "on_unavailable": "degrade"}
WRONG_FORM = fault("wrong_schema", len(TENANTS) * MEDIUM_FAILURES, mode="json")
GARBLED = [fault("html", 1), fault("cut", 1), fault("empty_choices", 1)]
DOORS = [Way(name, JobState.SUCCEEDED) for name in ("client", "batch", "message", "completion", "command")]
FAULTY = [
    Way("retried", JobState.SUCCEEDED, None, [fault("server_error")], WITHOUT_FALLBACK),
    Way("garbled", JobState.SUCCEEDED, None, GARBLED, WITHOUT_FALLBACK),
    Way("answered elsewhere", JobState.SUCCEEDED, None, [fault("server_error")]),
    Way(
        "degraded",
        JobState.SUCCEEDED,
        "quota_exhausted",
        [fault("insufficient_quota", model="sim-small")],
        WITHOUT_A_MODEL,
    ),
    Way("refused by the provider", JobState.DEAD, "bad_request", [fault("bad_request")]),
    Way("against its policy", JobState.DEAD, "content_policy", [fault("content_filter")]),
    Way("of the wrong form", JobState.DEAD, "output_invalid", [WRONG_FORM], CLASSIFY),
    Way("without a budget", JobState.DEAD, "budget_exhausted", (), {"project": CLOSED}),
]
CANCELLED = Way("cancelled", JobState.CANCELLED, None, [fault("hang")])
WAYS = {way.name: way for way in [*DOORS, *FAULTY, CANCELLED]}

REFUSALS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a tier that is not there": lambda _fields: {"tier": "nowhere"},
    "a document that is no text": lambda fields: {"document": {"text": fields["document"]}},
    "a variable that is too long": lambda fields: {"variables": {"audience": fields["document"] * 9}},
    "a variable of another form": lambda fields: {"variables": {"audience": f"<{fields['document']}>"}},
    "metadata that is no text": lambda fields: {"metadata": {"case": [fields["document"]]}},
    "a name that is too long": lambda fields: {"document_name": fields["document"] * 9},
}
"""What can be wrong with a message at Celery's door."""
STRAYS = ("name", "tier", "unknown", "broken", "pickled", "formless")
"""Texts that come in where none is expected, each in a message of its own."""


@dataclass(frozen=True)
class Submitted:
    """A job, whose it is, how it came in or what became of it, and what its markers have in common."""

    id: UUID
    tenant: str
    way: str
    key: str

    @property
    def labels(self) -> set[tuple[str, str]]:
        """The markers that stand beside its text."""
        kinds = {"name"} if self.way == "command" else {"name", "metadata"}
        return {(kind, self.key) for kind in kinds}

    @property
    def payload(self) -> set[tuple[str, str]]:
        """The markers in its text."""
        kinds = {"document"} if self.way in {"completion", "of the wrong form"} else {"document", "variable"}
        return {(kind, self.key) for kind in kinds}


@dataclass
class Seen:
    """What was sent in, and what it left in every place."""

    submitted: list[Submitted] = field(default_factory=list)
    refused: list[Submitted] = field(default_factory=list)
    jobs: dict[UUID, Job] = field(default_factory=dict)
    of_tenant: dict[str, list[Job]] = field(default_factory=dict)
    rows: list[tuple[str, UUID | None, bytes]] = field(default_factory=list)
    logs: dict[str, bytes] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    flower: dict[str, bytes] = field(default_factory=dict)
    results_by_flower: dict[str, bytes] = field(default_factory=dict)
    dead: list[dict[str, Any]] = field(default_factory=list)
    money: str = ""

    def ended(self, state: JobState) -> list[Submitted]:
        return [each for each in self.submitted if self.jobs[each.id].state is state]

    def where(self, trace: bytes) -> list[str]:
        """Name the logs, pages of Flower and events that hold a trace."""
        events = {f"{event['type']} {number}": json.dumps(event).encode() for number, event in enumerate(self.events)}
        return [name for name, shown in (self.logs | self.flower | events).items() if trace in readable(shown)]


def markers(raw: bytes) -> set[tuple[str, str]]:
    """Find markers, as (which text of its job it stands in, what those of the job have in common)."""
    return {(kind.decode(), key.decode()) for kind, key in MARKER.findall(raw)}


def readable(raw: bytes) -> bytes:
    """Give a value and what is written in it as Base64, as the bodies of messages are."""
    parts = [raw]
    for found in BASE64.findall(raw):
        with suppress(ValueError):
            parts.append(base64.b64decode(found[: len(found) // 4 * 4]))
    return b"\n".join(parts)


def request(tenant: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Make a request with a marker in each of its texts; but for those, the texts of all tenants are the same."""
    key = uuid4().hex
    mark = f"CANARY-{tenant}-{{}}-{key}"
    fields = {
        "tenant": tenant,
        "prompt": "summarise_document",
        "tier": "medium",
        "document": TEXT.format(mark.format("document")),
        "document_name": mark.format("name") + ".txt",
        "variables": {"audience": mark.format("variable")},
        "metadata": {"case": mark.format("metadata")},
    }
    return key, fields | changes


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    ends_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_at, "it did not come to hold"
        time.sleep(LOOK_S)


def penstock(*arguments: object) -> str:
    """Run the command and give what it prints."""
    default_settings.cache_clear()
    with redirect_stdout(io.StringIO()) as printed:
        cli.commands.main([str(each) for each in arguments], prog_name="penstock", standalone_mode=False)
    default_settings.cache_clear()
    return printed.getvalue()


def broker(database: int = 0) -> redis.Redis:
    path = load_settings().require_broker_url().removeprefix("redis+socket://")
    return redis.Redis(unix_socket_path=path, db=database)


def dump() -> dict[str, bytes]:
    """Read every key of every database of Redis, with its value."""
    found = {}
    for number in range(DATABASES):
        with broker(number) as client:
            for key in client.scan_iter():
                value = READ[client.type(key).decode()](client, key)
                found[f"{number} {key.decode()}"] = key + repr(value).encode()
    return found


@contextmanager
def watching_commands(into: list[str]) -> Iterator[None]:
    """Keep every command with a trace in it that anybody gives to Redis."""
    with broker() as client, client.monitor() as monitor:

        def watch() -> None:
            for command in monitor.listen():
                said = str(command["command"])
                if said.endswith(END_OF_WATCH):
                    return
                if TRACE in readable(said.encode()):
                    into.append(said)

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            with broker() as other:
                other.echo(END_OF_WATCH)
            thread.join()


@contextmanager
def watching_events(app: Celery, workers: int, into: list[dict[str, Any]]) -> Iterator[None]:
    """Keep every event that Celery's workers send; the block begins when each has been heard."""
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": into.append})
        thread = Thread(target=receiver.capture, kwargs={"wakeup": True})
        thread.start()
        try:
            eventually(lambda: len({event.get("hostname") for event in into}) == workers)
            yield
        finally:
            receiver.should_stop = True
            thread.join()


@dataclass(frozen=True)
class Run:
    """Sends in for each tenant through each door and on each way, and reads what that left."""

    stack: Stack
    client: Client
    database: Engine
    app: Celery
    flower: httpx.Client
    folder: Path
    seen: Seen = field(default_factory=Seen)

    def all(self) -> None:
        """Go through every door at once, then all other ways, one after the other."""
        for tenant in TENANTS:
            self.client.set_budget(Budget(tenant, Period.DAY, Unit.TOKENS, project=CLOSED, hard_limit=0))
            self.come_in(tenant)
            self.be_refused(tenant)
        self.stray()
        for _ in range(BATCH):
            self.submit("batch", lane="batch")
        self.settle_down()
        for way in FAULTY:
            self.client.wait_all(self.go(way), timeout_s=PATIENCE_S)
        self.cancel(self.go(CANCELLED))
        self.settle_down()

    def come_in(self, tenant: str) -> None:
        """Submit one by one through every door."""
        key, fields = request(tenant)
        self.seen.submitted.append(Submitted(self.client.submit(**fields), tenant, "client", key))
        for way, task, changes in (
            ("message", "penstock.summarise", {}),
            ("completion", "penstock.complete", CLASSIFY),
        ):
            key, fields = request(tenant, **changes)
            sent = self.app.send_task(task, kwargs=fields)
            self.seen.submitted.append(Submitted(UUID(sent.id), tenant, way, key))
        key, fields = request(tenant)
        path = self.folder / fields["document_name"]
        path.write_text(fields["document"])
        audience = f"audience={fields['variables']['audience']}"
        printed = penstock("submit", path, "--tenant", tenant, "--tier", "medium", "--var", audience, "--json")
        self.seen.submitted.append(Submitted(UUID(json.loads(printed)["id"]), tenant, "command", key))

    def be_refused(self, tenant: str) -> None:
        """Send messages that are refused, each with all of its texts."""
        for way, change in REFUSALS.items():
            key, fields = request(tenant)
            sent = self.app.send_task("penstock.summarise", kwargs=fields | change(fields))
            self.seen.refused.append(Submitted(UUID(sent.id), tenant, way, key))
        key, fields = request(tenant)
        sent = self.app.send_task("penstock.summarise", args=[fields["document"]], kwargs=fields)
        self.seen.refused.append(Submitted(UUID(sent.id), tenant, "positional arguments", key))

    def stray(self) -> None:
        """Send texts where none is expected."""
        fields = {name: {"tenant": "acme", "document": f"STRAY-{name}"} for name in STRAYS}
        named = {"tenant": "acme", "document": " ", "document_name": "STRAY-name.txt"}
        for name, kwargs in (("name", named), ("tier", fields["tier"] | {"tier": "STRAY-tier " * 99})):
            sent = self.app.send_task("penstock.summarise", kwargs=kwargs)
            self.seen.refused.append(Submitted(UUID(sent.id), "acme", name, name))
        self.app.send_task("penstock.sumarise", kwargs=fields["unknown"])
        self.app.send_task("penstock.summarise", kwargs=fields["pickled"], serializer="pickle")
        broken = {"task": "penstock.summarise", "id": str(uuid4()), "kwargsrepr": repr(fields["broken"])}
        with self.app.producer_or_acquire() as producer:
            producer.publish(fields["formless"], routing_key="celery")
            producer.publish('[[], {"document": "STRAY-broken', routing_key="celery", headers=broken, **JSON)

    def go(self, way: Way) -> list[UUID]:
        """Have the provider misbehave, and submit."""
        if way.faults:
            httpx.post(f"{self.stack.simulator_url}/faults", json={"faults": way.faults}).raise_for_status()
        return self.submit(way.name, **way.fields)

    def submit(self, way: str, **changes: Any) -> list[UUID]:
        """Submit one job of each tenant at once."""
        made = [request(tenant, **changes) for tenant in TENANTS]
        ids = self.client.submit_many(fields for _, fields in made)
        self.seen.submitted += map(Submitted, ids, TENANTS, [way] * len(ids), [key for key, _ in made])
        return ids

    def cancel(self, ids: list[UUID]) -> None:
        """Cancel jobs once their calls are in flight."""
        stats = f"{self.stack.simulator_url}/stats"
        eventually(lambda: int(httpx.get(stats).json()["models"]["sim-medium"]["in_flight"]) == len(ids))
        assert set(self.client.cancel(*ids)) == set(ids)

    def settle_down(self) -> None:
        """Wait until every message was taken, every job has ended, every death was told, and Flower knows of it."""
        ids = [each.id for each in self.seen.submitted + self.seen.refused]
        eventually(lambda: self.count(FOUND, ids) == len(ids))
        states = self.client.wait_all(ids, timeout_s=PATIENCE_S)
        deaths = list(states.values()).count(JobState.DEAD)
        eventually(lambda: self.count(TOLD, ids) == deaths)
        with broker() as client:
            eventually(lambda: not client.exists("celery", "dead_letter", "unacked"))

        def are_shown() -> bool:
            ended = {task: told for task, told in self.tasks().items() if told["state"] in ENDS}
            letters = sum(told["name"] == "penstock.dead_letter" for told in ended.values())
            return {str(each) for each in ids} <= ended.keys() and letters >= deaths

        eventually(are_shown)

    def count(self, statement: TextClause, ids: list[UUID]) -> int:
        with self.database.connect() as connection:
            return int(connection.scalar(statement, {"ids": [str(each) for each in ids]}) or 0)

    def read(self) -> None:
        """Look into every place."""
        seen = self.seen
        seen.jobs = {each.id: self.client.get(each.id) for each in seen.submitted + seen.refused}
        seen.of_tenant = {tenant: self.client.as_tenant(tenant).find(most=ALL) for tenant in TENANTS}
        seen.rows = self.rows()
        seen.logs = {path.name: path.read_bytes() for path in self.stack.settings.home.rglob("*log") if path.is_file()}
        seen.keys = dump()
        seen.tasks = self.tasks()
        seen.flower = {
            path: self.flower.get(path).content for path in (*PAGES, *(f"/task/{id_}" for id_ in seen.tasks))
        }
        seen.flower["/tasks/datatable"] = self.flower.post("/tasks/datatable", data=DATATABLE).content
        one_of_each = {each.way: str(each.id) for each in seen.submitted + seen.refused}
        for way, id_ in one_of_each.items():
            seen.results_by_flower[way] = self.flower.get(f"/api/task/result/{id_}").content
        seen.dead = [json.loads(line) for line in penstock("dead", "list", "--limit", ALL, "--json").splitlines()]
        shown = {letter["id"] for letter in seen.dead} & set(one_of_each.values())
        seen.dead += [json.loads(penstock("dead", "show", id_, "--json")) for id_ in shown]
        seen.money = "".join(penstock(*command, "--json") for command in MONEY)

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Give what Flower says of each task."""
        told: dict[str, dict[str, Any]] = self.flower.get("/api/tasks").json()
        return told

    def rows(self) -> list[tuple[str, UUID | None, bytes]]:
        """Read every row of every table, whole, with the job that it belongs to."""
        found: list[tuple[str, UUID | None, bytes]] = []
        with self.database.connect() as connection:
            for table in connection.scalars(TABLES).all():
                statement = text(ROWS.format(table=table, owner=OWNERS.get(table, "NULL")))
                found += [(table, each.owner, each.row.encode()) for each in connection.execute(statement)]
        return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One pool process a tier, with times so long that a busy machine passes none of them."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as home, pytest.MonkeyPatch.context() as patch:
        config = shutil.copytree(CONFIG, Path(home) / "config")
        tiers = (CONFIG / "tiers.toml").read_text()
        (config / "tiers.toml").write_text(
            tiers.replace("processes = 2", "").replace("timeout_s = 5\n", "timeout_s = 60\n")
        )
        for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
            patch.delenv(name)
        patch.setenv("PENSTOCK_HOME", home)
        patch.setenv("PENSTOCK_CONFIG", str(config))
        patch.setenv("PENSTOCK_PROMPTS", str(ROOT / "prompts"))
        patch.setenv("PENSTOCK_FLOWER_OPEN", "1")
        with Stack(tell=lambda _: None) as running:
            yield running


@pytest.fixture(scope="module")
def seen(stack: Stack, client: Client, database: Engine, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Go all ways, and read what that left."""
    assert stack.flower_url is not None
    url = load_settings().require_broker_url()
    with Celery("foreign", broker=url, set_as_current=False) as app, httpx.Client(base_url=stack.flower_url) as flower:
        run = Run(stack, client, database, app, flower, tmp_path_factory.mktemp("documents"))
        with watching_commands(run.seen.commands), watching_events(app, len(POOLS) + 1, run.seen.events):
            run.all()
            run.read()
    return run.seen


def test_every_job_ended_as_it_was_to(seen: Seen) -> None:
    assert Counter(each.way for each in seen.submitted) == {
        way: len(TENANTS) * (BATCH if way == "batch" else 1) for way in WAYS
    }
    for each in seen.submitted:
        job, way = seen.jobs[each.id], WAYS[each.way]
        assert (job.state, job.reason, job.tenant) == (way.state, way.reason, each.tenant), way
        assert job.attempts == {"retried": 2, "garbled": 2, "of the wrong form": MEDIUM_FAILURES}.get(each.way, 1)
        assert job.degraded == (each.way == "degraded")
        assert (job.model_asked == "sim-small") == (each.way == "answered elsewhere")
    for each in seen.refused:
        job = seen.jobs[each.id]
        assert (job.state, job.reason, job.tenant) == (JobState.DEAD, "invalid", each.tenant), each.way


def test_a_result_holds_the_document_of_its_own_job_and_of_no_other(seen: Seen) -> None:
    for each in seen.submitted:
        result = seen.jobs[each.id].result
        assert (result is not None) == (WAYS[each.way].state is JobState.SUCCEEDED)
        assert markers((result or "").encode()) == (set() if result is None else {("document", each.key)}), each.way


def test_a_tenants_own_reads_show_its_own_jobs_and_texts(seen: Seen) -> None:
    for tenant, jobs in seen.of_tenant.items():
        own = [each for each in seen.submitted if each.tenant == tenant]
        assert {job.id for job in jobs} == {each.id for each in own + seen.refused if each.tenant == tenant}
        results = {("document", each.key) for each in seen.ended(JobState.SUCCEEDED) if each.tenant == tenant}
        shown = markers("".join(job.model_dump_json() for job in jobs).encode())
        assert shown == results.union(*(each.labels for each in own))


def test_a_marker_stands_only_in_rows_of_its_own_job(seen: Seen) -> None:
    keys = {each.id: each.key for each in seen.submitted}
    found: dict[str, set[tuple[str, str]]] = {}
    for table, owner, row in seen.rows:
        assert {key for _, key in markers(row)} <= {keys.get(owner) if owner else None}, table
        found[table] = found.get(table, set()) | markers(row)
    succeeded = seen.ended(JobState.SUCCEEDED)
    assert {table: marks for table, marks in found.items() if marks} == {
        "jobs": set().union(*(each.labels for each in seen.submitted)),
        "payloads": set().union(*(each.payload for each in seen.submitted)),
        "answers": {("document", each.key) for each in succeeded if each.way != "degraded"},
        "results": {("document", each.key) for each in succeeded},
    }
    assert {"attempts", "ledger", "spending", "budgets", "tenant_shares", "workers"} <= found.keys()


def test_logs_hold_no_text(seen: Seen) -> None:
    assert seen.logs.keys() >= LOGS
    everything = b"".join(seen.logs.values())
    assert [each.way for each in seen.submitted + seen.refused if str(each.id).encode() not in everything] == []
    assert [name for name, log in seen.logs.items() if TRACE in readable(log)] == []


def test_redis_has_text_only_while_a_request_waits_at_celerys_door(seen: Seen) -> None:
    assert [command[:80] for command in seen.commands if not command.startswith(AT_CELERYS_DOOR)] == []
    waited = {key for command in seen.commands for _, key in markers(readable(command.encode()))}
    sent = {each.key for each in seen.submitted if each.way in {"message", "completion"}}
    assert waited == sent | {each.key for each in seen.refused if each.way not in STRAYS}
    assert any("penstock:quota" in key for key in seen.keys)
    assert [key for key, value in seen.keys.items() if TRACE in readable(value)] == []


def test_celerys_events_hold_no_text(seen: Seen) -> None:
    told = {event["uuid"] for event in seen.events if event["type"].startswith("task-")}
    assert {str(each.id) for each in seen.submitted + seen.refused} <= told
    kinds = ("received", "started", "succeeded", "failed", "retried", "revoked")
    assert {f"task-{kind}" for kind in kinds} <= {event["type"] for event in seen.events}
    assert [event for event in seen.events if TRACE in readable(json.dumps(event).encode())] == []


def test_flower_shows_no_text_and_of_arguments_identifiers_alone(seen: Seen) -> None:
    assert [path for path, page in seen.flower.items() if TRACE in readable(page)] == []
    for each in seen.submitted:
        job, task = seen.jobs[each.id], seen.tasks[str(each.id)]
        assert str(each.id).encode() in seen.flower["/tasks/datatable"]
        assert task["args"] == "()"
        prompt = f"{job.prompt.id}@{job.prompt.version}"
        shown = {"tenant": each.tenant, "tier": job.tier, "lane": str(job.lane), "prompt": prompt}
        assert ast.literal_eval(task["kwargs"]) == shown


def test_flower_gives_no_result(seen: Seen) -> None:
    assert [way for way, answer in seen.results_by_flower.items() if TRACE in answer] == []


def test_dead_letters_show_no_payload_and_the_labels_of_their_own_job(seen: Seen) -> None:
    labels = {str(each.id): each.labels for each in seen.submitted} | {str(each.id): set() for each in seen.refused}
    dead = seen.ended(JobState.DEAD) + seen.refused
    told = Counter(letter["id"] for letter in seen.dead)
    assert told.keys() == {str(each.id) for each in dead}
    assert list(told.values()).count(2) == len({each.way for each in dead})
    for letter in seen.dead:
        assert markers(json.dumps(letter).encode()) == labels[letter["id"]]


def test_usage_and_budgets_show_no_text(seen: Seen) -> None:
    assert all(seen.money.count(f'"{tenant}"') > len(MONEY) - len(TENANTS) for tenant in TENANTS)
    assert TRACE.decode() not in seen.money


@pytest.mark.parametrize("stray", STRAYS)
def test_a_text_where_none_is_expected_is_neither_logged_nor_shown(seen: Seen, stray: str) -> None:
    assert seen.where(f"STRAY-{stray}".encode()) == []
