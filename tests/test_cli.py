"""The command: what it prints can be read by people and by programs, and an error is one line with a cure."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import click
import pytest
import redis
from sqlalchemy import Engine, text

from penstock import cli
from penstock.client import Client
from penstock.jobs.submission import bury_refused
from penstock.settings import Settings, default_settings
from tests.store.databases import address, bring_to, empty_database, version
from workers.embedded import EmbeddedServices

ROOT = Path(__file__).parents[1]
PLAIN = str(ROOT / "samples" / "README.md")


@dataclass(frozen=True)
class Ran:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Read the output as one JSON value a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def error(self) -> str:
        """Give the one line of an error."""
        assert self.out == ""
        [line] = self.err.splitlines()
        assert line.startswith("penstock: ")
        assert line.endswith("\n") or line.isprintable()
        return line.removeprefix("penstock: ")


Penstock = Callable[..., Ran]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Penstock]:
    """Run the command in an empty folder and an environment without settings."""
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        default_settings.cache_clear()
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    default_settings.cache_clear()


@pytest.fixture
def penstock(
    bare: Penstock, settings: Settings, engine: Engine, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Penstock:
    """Run the command in the environment of empty services."""
    assert settings.database_url is not None
    assert settings.broker_url is not None
    monkeypatch.setenv("PENSTOCK_CONFIG", str(settings.config))
    monkeypatch.setenv("PENSTOCK_PROMPTS", str(settings.prompts))
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("PENSTOCK_BROKER_URL", settings.broker_url.get_secret_value())
    return bare


@pytest.fixture
def client(settings: Settings, penstock: Penstock) -> Iterator[Client]:
    """Give a client beside the command."""
    with Client(settings) as client:
        yield client


def submit(client: Client, **fields: Any) -> UUID:
    return client.submit(**{"tenant": "acme", "prompt": "classify_document", "document": "The river rose.", **fields})


def kill(engine: Engine, job_id: UUID, reason: str = "timeout", ended: str = "now()") -> None:
    """End a job as dead, with one attempt behind it."""
    with engine.begin() as connection:
        connection.execute(
            text(f"UPDATE jobs SET state = 'dead', reason = :reason, ended_at = {ended} WHERE id = :id"),
            {"id": job_id, "reason": reason},
        )
        connection.execute(
            text("INSERT INTO attempts (job_id, fence, worker, outcome, reason) VALUES (:id, 1, 'w', 'dead', :reason)"),
            {"id": job_id, "reason": reason},
        )


def succeed(engine: Engine, job_id: UUID) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'succeeded', ended_at = now() WHERE id = :id"), {"id": job_id})
        connection.execute(text("INSERT INTO results VALUES (:id, 'A river rose.', 'm', 'm')"), {"id": job_id})


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM jobs")) or 0)


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """List the command, its groups and their commands, as the words that one types."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from every_command(child, (*path, name))


@pytest.mark.parametrize("path", list(every_command(cli.commands)), ids=" ".join)
def test_every_command_has_help(bare: Penstock, path: tuple[str, ...]) -> None:
    if path and path[-1] in {"flower", "simulator"}:
        return  # they pass --help on
    for option in ("--help", "-h"):
        ran = bare(*path, option)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(" ".join(["Usage: penstock", *path]))
        assert len(ran.out.splitlines()) > 3


@pytest.mark.parametrize("path", [(), ("jobs",), ("dead",)])
def test_group_alone_shows_its_help(bare: Penstock, path: tuple[str, ...]) -> None:
    ran = bare(*path)
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_submit_prints_an_id_a_document(penstock: Penstock, client: Client) -> None:
    ran = penstock("submit", PLAIN, PLAIN, "--tenant", "acme", "--var", "language=German", "--tier", "large")
    assert (ran.code, ran.err) == (0, "")
    ids = ran.out.split()
    assert len(set(ids)) == 2
    job = client.get(ids[1])
    assert (job.tenant, job.tier, job.document_name) == ("acme", "large", "README.md")


def test_submit_as_json_is_an_object_a_line(penstock: Penstock, engine: Engine) -> None:
    ran = penstock("submit", PLAIN, PLAIN, "--tenant", "acme", "--lane", "batch", "--json")
    assert [set(line) for line in ran.lines] == [{"id", "document"}] * 2
    assert {line["document"] for line in ran.lines} == {"README.md"}
    assert count(engine) == 2


def test_value_of_a_variable_may_hold_an_equals_sign(penstock: Penstock, engine: Engine) -> None:
    assert penstock("submit", PLAIN, "--tenant", "acme", "--var", "audience=a=b").code == 0
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT variables FROM payloads")) == {"audience": "a=b"}


def test_wait_gives_up_with_1(penstock: Penstock, engine: Engine) -> None:
    ran = penstock("submit", PLAIN, "--tenant", "acme", "--wait", "--timeout", "0")
    assert ran.code == 1
    assert ran.error() == "1 of 1 jobs had not ended after 0.0 s; they go on"
    assert count(engine) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit", PLAIN], "Missing option '--tenant'."),
        (["submit", "--tenant", "acme"], "Missing argument 'FILES...'."),
        (["submit", "nothing.txt", "--tenant", "acme"], "File 'nothing.txt' does not exist."),
        (["submit", ".", "--tenant", "acme"], "is a directory"),
        (["submit", PLAIN, "--tenant", "ACME"], "requests[0].tenant: "),
        (["submit", PLAIN, __file__, "--tenant", "acme"], "'test_cli.py' has an unsupported type"),
        (["submit", PLAIN, "--tenant", "acme", "--tier", "huge"], "there is no tier 'huge'"),
        (["submit", PLAIN, "--tenant", "acme", "--prompt", "nothing"], "'nothing' does not exist"),
        (["submit", PLAIN, "--tenant", "acme", "--prompt-version", "9.0.0"], "'9.0.0' does not exist"),
        (["submit", PLAIN, "--tenant", "acme", "--lane", "express"], "'express' is not one of"),
        (["submit", PLAIN, "--tenant", "acme", "--priority", "10"], "requests[0].priority: "),
        (["submit", PLAIN, "--tenant", "acme", "--priority", "high"], "'high' is not a valid integer"),
        (["submit", PLAIN, "--tenant", "acme", "--var", "language"], "'language' is not NAME=VALUE"),
        (["submit", PLAIN, "--tenant", "acme", "--var", "tone=kind"], "requests[0].variables.tone: "),
        (["jobs", "list", "--since", "yesterday"], "'yesterday' is neither like 30m, 2h, 3d nor an ISO time"),
        (["jobs", "list", "--since", "\N{SUPERSCRIPT TWO}d"], "is neither like"),
        (["jobs", "list", "--since", "99999999999d"], "is neither like"),
        (["jobs", "list", "--since", "9" * 400 + "d"], "is neither like"),
        (["jobs", "list", "--state", "lost"], "'lost' is not one of"),
        (["jobs", "list", "--limit", "0"], "0 is not in the range"),
        (["jobs", "list", "--limit", "-1"], "-1 is not in the range"),
        (["jobs", "show", "7"], "'7' is not a valid UUID"),
        (["jobs", "cancel"], "Missing argument 'JOB_IDS...'."),
        (["dead", "list", "--reason", "bad_luck"], "'bad_luck' is not one of"),
        (["dead", "replay"], "name ids, a filter"),
        (["dead", "discard"], "name ids, a filter"),
        (["dead", "replay", "--since", ""], "name ids, a filter"),
        (["dead", "discard", str(uuid4()), "--all"], "not both"),
        (["worker", "small", "--concurrency", "0"], "0 is not in the range"),
        (["jobs", "list", "--jsn"], "No such option"),
        (["jobz"], "No such command 'jobz'."),
    ],
)
def test_wrong_use_ends_with_2_and_one_line(
    penstock: Penstock, engine: Engine, arguments: list[str], says: str
) -> None:
    ran = penstock(*arguments)
    assert ran.code == 2
    assert says in ran.error()
    assert count(engine) == 0


def test_list_as_json_is_an_object_a_line_the_newest_first(penstock: Penstock, client: Client) -> None:
    ids = [str(submit(client, tenant=tenant)) for tenant in ("acme", "other", "acme")]
    assert [line["id"] for line in penstock("jobs", "list", "--json").lines] == ids[::-1]
    assert [line["id"] for line in penstock("jobs", "list", "--tenant", "acme", "--json").lines] == [ids[2], ids[0]]
    assert [line["id"] for line in penstock("jobs", "list", "--limit", "1", "--json").lines] == [ids[2]]
    assert penstock("jobs", "list", "--state", "dead", "--json") == Ran(0, "", "")
    assert penstock("jobs", "list", "--tier", "large", "--json").lines == []


def test_list_is_a_table_with_whole_ids(penstock: Penstock, client: Client) -> None:
    job_id = submit(client)
    out = penstock("jobs", "list").out
    for word in (str(job_id), "acme", "small", "interactive", "classify_document@1.0.0", "released"):
        assert word in out


def test_show_has_the_history_and_the_result(penstock: Penstock, client: Client, engine: Engine) -> None:
    job_id = submit(client)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO attempts (job_id, fence, worker, outcome) VALUES (:id, 1, 'host:1:a', 'succeeded')"),
            {"id": job_id},
        )
    succeed(engine, job_id)
    [shown] = penstock("jobs", "show", job_id, "--json").lines
    assert (shown["id"], shown["state"], shown["result"]) == (str(job_id), "succeeded", "A river rose.")
    assert [attempt["outcome"] for attempt in shown["history"]] == ["succeeded"]
    people = penstock("jobs", "show", job_id).out
    assert "attempt 1: " in people
    assert people.endswith("\n\nA river rose.\n")


@pytest.mark.parametrize("group", ["jobs", "dead"])
def test_show_of_an_unknown_job_ends_with_1(penstock: Penstock, group: str) -> None:
    job_id = uuid4()
    ran = penstock(group, "show", job_id)
    assert (ran.code, ran.error()) == (1, f"there is no job {job_id}")


def test_cancel_tells_of_each_job(penstock: Penstock, client: Client) -> None:
    live, unknown = submit(client), uuid4()
    ran = penstock("jobs", "cancel", live, unknown)
    assert ran.code == 0
    assert ran.out.splitlines() == [f"{live} cancelled", f"{unknown} had ended already, or does not exist"]
    assert client.get(live).state == "cancelled"


def test_dead_letters_are_listed_shown_replayed_and_discarded(
    penstock: Penstock, client: Client, engine: Engine
) -> None:
    first, second, live = submit(client), submit(client, tenant="other"), submit(client)
    kill(engine, first)
    kill(engine, second, "server_error")
    assert {line["id"] for line in penstock("dead", "list", "--json").lines} == {str(first), str(second)}
    assert [line["id"] for line in penstock("dead", "list", "--reason", "timeout", "--json").lines] == [str(first)]
    assert "attempt 1: " in penstock("dead", "show", first).out
    assert penstock("dead", "replay", "--reason", "timeout").out == f"{first} queued anew\n"
    assert penstock("dead", "replay", first).out.startswith(f"{first} is not dead")
    assert penstock("dead", "discard", "--all").out == f"{second} discarded\n"
    assert penstock("dead", "discard", "--all").out == ""
    assert [client.get(job_id).state for job_id in (first, second, live)] == ["queued", "cancelled", "released"]


def test_refused_job_is_listed_and_cannot_be_replayed(penstock: Penstock, engine: Engine) -> None:
    job_id = uuid4()
    with engine.begin() as connection:
        bury_refused(connection, job_id, tenant="acme", prompt="", detail="tier: there is no tier")
    assert [line["detail"] for line in penstock("dead", "list", "--json").lines] == ["tier: there is no tier"]
    assert (
        "is not dead, has no content (refused at the door, or purged)"
        in penstock("dead", "replay", "--reason", "invalid").out
    )


def test_since_takes_minutes_hours_days_and_times(penstock: Penstock, client: Client, engine: Engine) -> None:
    job_id = submit(client)
    kill(engine, job_id, ended="now() - interval '90 minutes'")
    ago = datetime.now(UTC) - timedelta(minutes=100)
    for since in ("2h", "100m", "1d", "3d", ago.isoformat(), ago.astimezone().replace(tzinfo=None).isoformat()):
        assert [line["id"] for line in penstock("dead", "list", "--since", since, "--json").lines] == [str(job_id)]
    soon = datetime.now(UTC).isoformat()
    for since in ("1h", "80m", soon):
        assert penstock("dead", "list", "--since", since, "--json").lines == []


def test_check_and_migrate_say_that_all_is_well(penstock: Penstock) -> None:
    assert penstock("check").out == "3 tiers, 4 deployments, 7 prompt versions: all of it holds together\n"
    assert penstock("migrate") == Ran(0, "the schema is up to date\n", "")
    assert penstock("migrate", "--contract") == Ran(0, "the schema is up to date\n", "")


def test_migrate_says_what_waits_for_older_processes_and_contract_finishes_it(
    bare: Penstock, services: EmbeddedServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = (
        "the schema is ready for this version; 0009, 0010 must wait until no older one runs: "
        "then `penstock migrate --contract`\n"
    )
    with empty_database(services.postgres.url) as database:
        bring_to(database, "0002")
        monkeypatch.setenv("PENSTOCK_DATABASE_URL", address(database))
        assert bare("migrate") == bare("migrate") == Ran(0, waits, "")
        assert version(database) == "0008"
        assert bare("migrate", "--contract") == Ran(0, "the schema is up to date\n", "")
        assert version(database) == "0010"
        assert bare("migrate") == Ran(0, "the schema is up to date\n", "")


def test_migrate_brings_an_empty_database_up_to_date(
    bare: Penstock, services: EmbeddedServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    with empty_database(services.postgres.url) as database:
        monkeypatch.setenv("PENSTOCK_DATABASE_URL", address(database))
        assert bare("migrate") == Ran(0, "the schema is up to date\n", "")
        assert version(database) == "0010"


@pytest.mark.parametrize("command", [["jobs", "list"], ["dead", "list"], ["submit", PLAIN, "--tenant", "acme"]])
def test_elsewhere_than_in_the_repository_the_cure_is_told(bare: Penstock, command: list[str]) -> None:
    ran = bare(*command)
    assert (ran.code, ran.error()) == (
        2,
        "config/tiers.toml, the file itself: it does not exist; create it, or point PENSTOCK_CONFIG at its folder",
    )


@pytest.mark.parametrize("command", ["up", "demo", "feeder", "flower"])
def test_what_runs_workers_says_where_to_run_it(bare: Penstock, command: str) -> None:
    ran = bare(command)
    assert ran.code == 1
    assert ran.error() == "there is no workers/ here; run this in the root of the repository or of the image"


def test_without_services_the_cure_is_told(penstock: Penstock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_DATABASE_URL")
    ran = penstock("jobs", "list")
    assert ran.code == 2
    assert ran.error().endswith("start them with `penstock up`, or set PENSTOCK_DATABASE_URL")


@pytest.mark.parametrize("command", [["jobs", "list"], ["migrate"], ["submit", PLAIN, "--tenant", "acme"]])
def test_postgres_away_is_one_line_with_a_cure(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/penstock")
    ran = penstock(*command)
    assert ran.code == 2
    assert ran.error().startswith("Postgres cannot be reached: ")
    assert ran.error().endswith("start it (`penstock up`), or correct PENSTOCK_DATABASE_URL")
    assert "secret" not in ran.err


def test_missing_tables_are_told_with_the_cure(
    penstock: Penstock, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = engine.url.render_as_string(hide_password=False).replace("postgresql+psycopg", "postgresql")
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", url.replace("/postgres?", "/template1?"))
    ran = penstock("jobs", "list")
    assert (ran.code, ran.error()) == (2, "Postgres: Penstock's tables are not there; run `penstock migrate`")


def test_bad_variable_of_the_environment_is_named(penstock: Penstock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_LEASE_S", "soon")
    ran = penstock("jobs", "list")
    assert ran.code == 2
    assert ran.error().startswith("environment, PENSTOCK_LEASE_S: ")


def test_program_of_its_own_prints_no_traceback(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    program = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "jobs", "list"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (program.returncode, program.stdout) == (2, "")
    assert program.stderr.startswith("penstock: config/tiers.toml")
    assert len(program.stderr.splitlines()) == 1
