"""Retention from outside: what tenants.toml says, what upkeep, the client and `penstock purge` make of it."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from sqlalchemy import Engine, event, text

from penstock.client import Client
from penstock.client.doorbell import Doorbell
from penstock.errors import ConfigurationError, InvalidRequestError
from penstock.jobs import submission
from penstock.jobs.retention import TextRows
from penstock.settings import Settings
from penstock.tenants import Tenants
from tests import test_cli
from tests.jobs import rows
from tests.jobs.test_retention import NO_TEXT, age, ended_job, held, purge, spend
from tests.test_cli import Penstock
from workers.upkeep import announce, forget

bare, penstock, client = test_cli.bare, test_cli.penstock, test_cli.client

MARKER = "zebrafinch"
KEPT = TextRows(1, 1, 1, 1)


@contextmanager
def transactions(engine: Engine) -> Iterator[list[object]]:
    """Collect the transactions that are begun on the engine."""
    begun: list[object] = []
    note = begun.append
    event.listen(engine, "begin", note)
    try:
        yield begun
    finally:
        event.remove(engine, "begin", note)


def load(folder: Path, content: str) -> Tenants:
    (folder / "tenants.toml").write_text(content)
    return Tenants.load(folder)


@pytest.fixture
def doorbell(settings: Settings, broker: redis.Redis) -> Iterator[Doorbell]:
    assert broker.dbsize() == 0
    bell = Doorbell(settings.require_broker_url())
    yield bell
    bell.close()


@pytest.fixture
def forgetful(settings: Settings, engine: Engine, tmp_path: Path) -> Iterator[Client]:
    """Give a client of a place where nothing of `acme` is kept, and something of the others."""
    for name in ("tiers.toml", "models.toml"):
        (tmp_path / name).write_text((settings.config / name).read_text())
    (tmp_path / "tenants.toml").write_text("[default]\nretention_days = 30\n[tenants.acme]\nretention_days = 0\n")
    with Client(settings.model_copy(update={"config": tmp_path})) as client:
        yield client


def test_the_period_is_the_tenants_own_or_the_default(tmp_path: Path) -> None:
    tenants = load(
        tmp_path,
        "[default]\nretention_days = 30\n[tenants.acme]\nretention_days = 0\n[tenants.globex]\nretention_days = 0.5\n"
        "[tenants.zeta]\nweight = 2\n",
    )
    assert tenants.retention_days == {"acme": 0.0, "globex": 0.5, "zeta": 30.0}
    assert tenants.default.retention_days == 30.0
    assert tenants.entry("nobody").retention_days == 30.0


@pytest.mark.parametrize(
    ("content", "forgets"),
    [
        ("", False),
        ("[default]\nweight = 2\n[tenants.acme]\nweight = 3\n", False),
        ("[default]\nretention_days = 0\n", True),
        ("[tenants.acme]\nretention_days = 0\n", True),
    ],
)
def test_without_a_period_nobody_is_forgotten(tmp_path: Path, content: str, *, forgets: bool) -> None:
    assert load(tmp_path, content).forgets is forgets


@pytest.mark.parametrize("value", ["-1", "-0.001", "nan", "inf", "36501", "true", "'30'", "'never'", "[]"])
def test_a_period_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    for table in ("default", "tenants.acme"):
        with pytest.raises(ConfigurationError) as refusal:
            load(tmp_path, f"[{table}]\nretention_days = {value}\n")
        assert (refusal.value.file, refusal.value.place) == (
            str(tmp_path / "tenants.toml"),
            f"key '{table}.retention_days'",
        )


def test_upkeep_purges_by_the_tenants_periods(engine: Engine, tmp_path: Path) -> None:
    tenants = load(
        tmp_path,
        "[default]\nretention_days = 1\n[tenants.acme]\nretention_days = 0\n[tenants.zeta]\nretention_days = 36500\n",
    )
    acme = ended_job(engine, "cancelled")
    old, new = ended_job(engine, tenant="globex", days_ago=2), ended_job(engine, tenant="globex")
    kept = ended_job(engine, tenant="zeta", days_ago=9_000)
    assert forget(engine, tenants) == 2
    assert [held(engine, job_id) for job_id in (acme, old)] == [NO_TEXT, NO_TEXT]
    assert [held(engine, job_id) for job_id in (new, kept)] == [KEPT, KEPT]
    assert forget(engine, tenants) == 0


def test_upkeep_looks_at_periods_of_days_less_often_than_at_those_of_none(engine: Engine, tmp_path: Path) -> None:
    periods = "[default]\nretention_days = 1\n[tenants.acme]\nretention_days = 0\n[tenants.zeta]\nretention_days = 2\n"
    at_once = ended_job(engine, "cancelled")
    later = [ended_job(engine, tenant=tenant, days_ago=3) for tenant in ("globex", "zeta")]
    assert forget(engine, load(tmp_path, periods), at_once_only=True) == 1
    assert held(engine, at_once) == NO_TEXT
    nothing_kept = load(tmp_path, "[default]\nretention_days = 0\n[tenants.zeta]\nretention_days = 2\n")
    assert forget(engine, nothing_kept, at_once_only=True) == 1
    assert [held(engine, job_id) == NO_TEXT for job_id in later] == [True, False]


def test_upkeep_announces_a_death_though_its_text_is_gone(
    engine: Engine, doorbell: Doorbell, broker: redis.Redis, tmp_path: Path
) -> None:
    job_id = ended_job(engine, "dead")
    assert forget(engine, load(tmp_path, "[default]\nretention_days = 0\n")) == 1
    assert (announce(engine, doorbell), broker.llen("dead_letter")) == (1, 1)
    assert held(engine, job_id) == NO_TEXT


@pytest.mark.parametrize("content", ["", "[tenants.acme]\nweight = 2\n"])
def test_upkeep_asks_nothing_where_everything_is_kept(engine: Engine, tmp_path: Path, content: str) -> None:
    ended_job(engine, days_ago=9_000)
    with transactions(engine) as begun:
        assert forget(engine, load(tmp_path, content)) == 0
    assert begun == []


def test_without_retention_a_result_is_read_once(forgetful: Client, engine: Engine) -> None:
    job_id = ended_job(engine)
    assert purge(engine, {"acme": 0.0}) == 1
    assert purge(engine, {"acme": 0.0}) == 0
    job = forgetful.wait(job_id, timeout_s=0)
    assert (job.result, job.metadata, job.document_name) == ("A tale.", {"order": "17"}, "tale.txt")
    assert purge(engine, {"acme": 0.0}) == 1
    gone = forgetful.get(job_id)
    assert (gone.state, gone.result, gone.metadata, gone.document_name) == ("succeeded", None, {}, None)
    assert gone.cost_nanodollars == 7


@pytest.mark.parametrize("state", ["succeeded", "cancelled"])
def test_a_look_at_a_job_of_another_tenant_or_without_a_result_writes_nothing(
    forgetful: Client, engine: Engine, state: str
) -> None:
    job_id = ended_job(engine, state, tenant="acme" if state == "cancelled" else "globex")
    before = rows.everything(engine)
    assert forgetful.get(job_id).state == state
    assert rows.everything(engine) == before


def test_a_look_at_a_running_job_is_no_fetch(forgetful: Client, engine: Engine) -> None:
    job = rows.running_job(engine)
    forgetful.get(job.id)
    rows.finish(engine, rows.success(job))
    purge(engine, {"acme": 0.0})
    assert held(engine, job.id).results == 1


def test_client_replays_and_reruns_nothing_that_was_purged(client: Client, engine: Engine) -> None:
    dead = rows.dead_job(engine)
    assert client.purge("acme").jobs == 1
    assert (client.replay([dead]), client.rerun([dead])) == ([], [])
    assert rows.state(engine, dead) == "dead"


def test_client_waits_for_a_purge_before_it_replays(client: Client, engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    with engine.connect() as purging:
        purging.execute(text("UPDATE jobs SET purged_at = now()"))
        purging.execute(text("DELETE FROM payloads"))
        with rows.behind(engine, lambda _: client.replay([job_id])) as replayed:
            purging.commit()
    assert replayed.result() == []
    assert rows.state(engine, job_id) == "dead"


def places(engine: Engine, marker: str) -> set[str]:
    """Name the tables in which a row has the marker, in whichever column."""
    with engine.begin() as connection:
        tables = list(
            connection.scalars(
                text(
                    "SELECT table_name FROM information_schema.tables"
                    " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
                )
            )
        )
        assert len(tables) > 8
        found = {
            table: connection.scalar(
                text(f'SELECT count(*) FROM "{table}" AS row WHERE row::text ILIKE :marker'), {"marker": f"%{marker}%"}
            )
            for table in tables
        }
    return {table for table, number in found.items() if number}


def marked_job(engine: Engine, **changes: Any) -> None:
    """Bring a job to an end that has the marker wherever a tenant can put text."""
    job = rows.running_job(
        engine,
        document=f"Of a {MARKER}.",
        variables={MARKER: MARKER},
        metadata={MARKER: MARKER},
        document_name=f"{MARKER}.txt",
        **changes,
    )
    answer = f"The {MARKER} sings."
    rows.execute(engine, "INSERT INTO answers VALUES (:id, 'd', :c, 'm', 'stop', :t)", id=job.id, c=uuid4(), t=answer)
    spend(engine, job)
    rows.finish(engine, rows.success(job, answer))


def test_after_a_purge_no_column_of_any_table_has_the_text_and_the_sums_are_unchanged(
    client: Client, engine: Engine
) -> None:
    for _ in range(3):
        marked_job(engine)
    with engine.begin() as connection:
        submission.bury_refused(connection, uuid4(), tenant="acme", prompt="x", detail=f"variables.{MARKER}: no")
    assert places(engine, MARKER) == {"jobs", "payloads", "answers", "results"}
    before, totals = rows.everything(engine), client.ledger_totals()

    proof = client.purge("acme")

    assert places(engine, MARKER) == set()
    after = rows.everything(engine)
    assert (after["ledger"], after["attempts"]) == (before["ledger"], before["attempts"])
    assert client.ledger_totals() == totals
    assert (totals.calls, totals.nanodollars) == (3, 21)
    assert (proof.jobs, proof.ledger_rows, proof.live_jobs, proof.is_complete) == (4, 3, 0, True)
    assert (proof.before, proof.deleted, proof.left) == (TextRows(3, 3, 3, 4), TextRows(3, 3, 3, 4), NO_TEXT)


def test_a_purge_leaves_other_tenants_and_live_jobs_alone(client: Client, engine: Engine) -> None:
    other = ended_job(engine, tenant="globex")
    live = rows.running_job(engine)
    mine = ended_job(engine)
    before = rows.everything(engine)
    proof = client.purge("acme")
    assert (held(engine, mine), held(engine, other)) == (NO_TEXT, KEPT)
    assert rows.row(engine, live.id) in before["jobs"]
    assert held(engine, live.id) == TextRows(payloads=1, labels=1)
    assert (proof.jobs, proof.live_jobs, proof.ledger_rows, proof.is_complete) == (1, 1, 1, True)


def test_a_purge_goes_in_batches_and_tells_how_far_it_is(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.client.aftercare.PURGED_A_STATEMENT", 2)
    for _ in range(5):
        ended_job(engine)
    told: list[tuple[int, int]] = []
    assert client.purge("acme", progress=lambda *done: told.append(done)).jobs == 5
    assert told == [(2, 5), (4, 5), (5, 5), (5, 5)]


def test_a_job_that_somebody_holds_is_told_as_left(client: Client, engine: Engine) -> None:
    busy, free = ended_job(engine), ended_job(engine)
    with engine.connect() as holding:
        holding.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": busy})
        proof = client.purge("acme")
    assert (proof.jobs, proof.left, proof.is_complete) == (1, KEPT, False)
    assert (held(engine, free), held(engine, busy)) == (NO_TEXT, KEPT)
    assert client.purge("acme").is_complete


def test_a_purge_before_a_time_leaves_what_ended_later(client: Client, engine: Engine) -> None:
    old, new = ended_job(engine, days_ago=3), ended_job(engine)
    before = datetime.now(UTC) - timedelta(days=1)
    proof = client.purge("acme", before)
    assert (held(engine, old), held(engine, new)) == (NO_TEXT, KEPT)
    assert (proof.jobs, proof.until, proof.before, proof.left) == (1, before, KEPT, NO_TEXT)
    assert proof.is_complete


@pytest.mark.parametrize(
    ("tenant", "before", "field"),
    [
        ("nobody", None, "tenant"),
        ("Acme", None, "tenant"),
        ("", None, "tenant"),
        ("acme", datetime(2026, 1, 1), "before"),  # noqa: DTZ001 - that is what is wrong with it
    ],
)
def test_a_purge_that_cannot_be_meant_is_refused(
    client: Client, engine: Engine, tenant: str, before: datetime | None, field: str
) -> None:
    ended_job(engine, days_ago=1_000)
    tables = rows.everything(engine)
    with pytest.raises(InvalidRequestError) as refusal:
        client.purge(tenant, before)
    assert refusal.value.field == field
    assert rows.everything(engine) == tables


def test_command_prints_a_proof(penstock: Penstock, engine: Engine) -> None:
    marked_job(engine)
    rows.running_job(engine)
    ran = penstock("purge", "--tenant", "acme", "--yes")
    assert (ran.code, ran.err) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ran.out.splitlines() if "│" in line]
    assert cells == [
        ["payloads (variables, documents)", "1", "1", "0"],
        ["answers (of models)", "1", "1", "0"],
        ["results", "1", "1", "0"],
        ["jobs (document names, metadata, details)", "1", "1", "0"],
    ]
    assert ran.out.splitlines()[-3:] == [
        "ledger: 1 rows kept, without text",
        "live jobs: 1 still have their text; cancel them first (`penstock jobs cancel ID...`), then purge again",
        "nothing is left",
    ]
    assert MARKER not in ran.out


def test_command_gives_the_proof_as_json(penstock: Penstock, engine: Engine) -> None:
    ended_job(engine)
    [proof] = penstock("purge", "--tenant", "acme", "--yes", "--json").lines
    until = datetime.fromisoformat(proof.pop("until"))
    assert until.tzinfo is not None
    every = {"payloads": 1, "answers": 1, "results": 1, "labels": 1}
    assert proof == {
        "tenant": "acme",
        "jobs": 1,
        "before": every,
        "deleted": every,
        "left": dict.fromkeys(every, 0),
        "ledger_rows": 1,
        "live_jobs": 0,
        "complete": True,
    }


def test_command_ends_with_1_when_something_is_left(penstock: Penstock, engine: Engine) -> None:
    job_id = ended_job(engine)
    with engine.connect() as holding:
        holding.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": job_id})
        ran = penstock("purge", "--tenant", "acme", "--yes")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.splitlines()[-1] == "something is left: it was in use; purge again"


@pytest.mark.parametrize(
    ("before", "purged"),
    [("2d", True), ("100h", True), ("4d", False), ("2999-01-01", True), ("2000-01-01T00:00:00+00:00", False)],
)
def test_command_purges_before_a_time(penstock: Penstock, engine: Engine, before: str, *, purged: bool) -> None:
    job_id = ended_job(engine)
    age(engine, job_id, 4.5 if before == "100h" else 3)
    assert penstock("purge", "--tenant", "acme", "--before", before, "--yes").code == 0
    assert held(engine, job_id) == (NO_TEXT if purged else KEPT)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--yes"], "Missing option '--tenant'."),
        (["--tenant", "Acme", "--yes"], "tenant: 'Acme' is no name; use lower-case letters"),
        (["--tenant", "", "--yes"], "tenant: '' is no name; use lower-case letters"),
        (["--tenant", "acmee", "--yes"], "tenant: 'acmee' has no jobs; correct the name; nothing was deleted"),
        (["--tenant", "acme", "--before", "", "--yes"], "'' is neither like 30m, 2h, 3d nor an ISO time"),
        (
            ["--tenant", "acme", "--before", "soon", "--yes"],
            "--before: 'soon' is neither like 30m, 2h, 3d nor an ISO time",
        ),
        (["--tenant", "acme", "--before", "-3d", "--yes"], "'-3d' is neither like"),
        (["--tenant", "acme", "--before", "9" * 400 + "d", "--yes"], "is neither like"),
        (["--tenant", "acme"], "what is purged cannot be brought back; add --yes if that is meant"),
    ],
)
def test_command_that_cannot_be_meant_changes_nothing(
    penstock: Penstock, engine: Engine, arguments: list[str], says: str
) -> None:
    ended_job(engine, days_ago=1_000)
    before = rows.everything(engine)
    ran = penstock("purge", *arguments)
    assert ran.code == 2
    assert says in ran.error()
    assert rows.everything(engine) == before


def on_terminal(settings: Settings, typed: str, *arguments: str) -> tuple[int, str, str]:
    """Run the command at a terminal where somebody types a line; give code, output and screen."""
    assert settings.database_url is not None
    assert settings.broker_url is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | {
        "PENSTOCK_CONFIG": str(settings.config),
        "PENSTOCK_PROMPTS": str(settings.prompts),
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_BROKER_URL": settings.broker_url.get_secret_value(),
    }
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{typed}\n".encode())
        program = subprocess.run(
            [sys.executable, "-m", "penstock.cli", "purge", *arguments],
            env=environment,
            cwd=test_cli.ROOT,
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return program.returncode, program.stdout, os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_command_asks_on_a_terminal_and_counts_there(settings: Settings, engine: Engine) -> None:
    job_id = ended_job(engine, days_ago=3)
    code, out, screen = on_terminal(settings, "y", "--tenant", "acme", "--json")
    assert "Delete the text of every ended job of tenant 'acme' for good? [y/N]" in screen
    assert "1 of 1 jobs" in screen
    assert (code, json.loads(out)["complete"]) == (0, True)
    assert held(engine, job_id) == NO_TEXT


def test_command_does_nothing_without_a_yes(settings: Settings, engine: Engine) -> None:
    ended_job(engine, days_ago=3)
    before = rows.everything(engine)
    code, out, screen = on_terminal(settings, "", "--tenant", "acme", "--before", "2d")
    assert "Delete the text of every job that ended before 20" in screen
    assert (code, out) == (130, "")
    assert "stopped" in screen
    assert rows.everything(engine) == before


def test_replay_says_that_a_purged_job_has_no_content(penstock: Penstock, client: Client, engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    client.purge("acme")
    ran = penstock("dead", "replay", job_id)
    why = "is not dead, has no content (refused at the door, or purged), or its batch was cancelled"
    assert ran.out == f"{job_id} {why}\n"
