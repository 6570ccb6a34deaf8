"""`penstock batch`: begun once, told to people and to programs, and files that are there whole or not at all."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from penstock.batches.batch import BatchState
from penstock.cli.batch_display import watch
from penstock.cli.batch_export import write_errors, write_jsonl
from penstock.cli.batch_options import Window, first_after
from penstock.client import Client
from penstock.client.doorbell import Doorbell
from penstock.jobs.execution import Outcome
from penstock.reasons import Reason
from penstock.settings import Settings
from tests import test_cli
from tests.batches.conftest import REQUEST, documents
from tests.batches.runs import end, run_some, succeed
from tests.jobs import rows
from tests.test_cli import Penstock
from workers.upkeep import forget, tend

NOW = datetime(2026, 11, 24, 21, 30, 20).astimezone()
DAY = timedelta(days=1)
ACME = ("--tenant", "acme")
QUERY = "SELECT 'The river rose on day ' || n AS body, n AS id FROM generate_series(1, 4) AS n ORDER BY n"

bare, penstock, client = test_cli.bare, test_cli.penstock, test_cli.client


@pytest.fixture
def source(tmp_path: Path, penstock: Penstock) -> str:
    """Write an input of four documents and a line that is none, beside which the command runs."""
    (tmp_path / "in.jsonl").write_text("\n".join([*map(json.dumps, documents(4)), "{bad"]))
    return "in.jsonl"


@pytest.fixture
def begun(client: Client) -> Client:
    """Begin a batch of three documents, of which the second is none."""
    client.batch("night", REQUEST, night_items())
    return client


def night_items() -> list[dict[str, Any]]:
    """Give what that batch is begun with."""
    items = documents(3)
    items[1] = {"document": ""}
    return items


def ended(client: Client, engine: Engine) -> None:
    """End that batch: its first document has a result, its third is dead."""
    first, third = run_some(engine, 2)
    succeed(engine, [first])
    end(engine, [third], Outcome.DEAD, reason=Reason.BAD_REQUEST, detail="HTTP 400")
    tend(engine, Doorbell(""))
    assert client.find_batch("acme", "night").state is BatchState.DONE


class TestTimes:
    @staticmethod
    def on(day: int, hour: int, minute: int = 0) -> datetime:
        return datetime(2026, 11, day, hour, minute).astimezone()

    @pytest.mark.parametrize(
        ("written", "day"), [(time(22), 24), (time(6), 25), (time(21, 30), 25), (time(21, 31), 24)]
    )
    def test_a_time_of_day_is_the_next_one(self, written: time, day: int) -> None:
        assert first_after(written, NOW) == self.on(day, written.hour, written.minute)

    def test_it_has_until_the_morning_after_it_begins(self) -> None:
        assert Window.of(time(22), time(6), NOW) == Window(self.on(24, 22), self.on(25, 6))
        assert Window.of(self.on(28, 22), time(6), NOW) == Window(self.on(28, 22), self.on(29, 6))
        assert Window.of(None, time(6), NOW) == Window(NOW, self.on(25, 6))
        assert Window.of(time(6), time(6), NOW) == Window(self.on(25, 6), self.on(26, 6))

    def test_what_is_started_in_the_minute_of_its_start_begins_now(self) -> None:
        assert Window.of(time(21, 30), None, NOW) == Window(NOW, None)
        assert Window.of(time(21, 29), None, NOW) == Window(self.on(25, 21, 29), None)

    def test_nothing_begins_in_the_past(self) -> None:
        assert Window.of(NOW - 9 * DAY, None, NOW) == Window(NOW, None)

    def test_an_end_that_is_over_is_not_another_one(self) -> None:
        assert Window.of(None, NOW - DAY / 2, NOW) == Window(NOW, NOW - DAY / 2)


class TestPlan:
    def test_it_says_what_a_batch_comes_to_and_stores_nothing(
        self, penstock: Penstock, client: Client, source: str
    ) -> None:
        ran = penstock("batch", "plan", source, *ACME)
        assert (ran.code, ran.err) == (0, "")
        assert [cell.strip() for cell in ran.out.splitlines()[4].split("│")] == ["", "documents", "4", "of 5 items", ""]
        assert "no call of this prompt was seen yet" in ran.out
        assert client.batches() == []

    def test_programs_read_what_people_do(self, penstock: Penstock, source: str) -> None:
        [told] = penstock("batch", "plan", source, *ACME, "--json").lines
        assert (told["items"], told["jobs"], told["objections"]) == (5, 4, [])
        assert told["prompt_tokens"]["low"] == told["prompt_tokens"]["high"]
        assert told["nanodollars"]["low"] < told["nanodollars"]["expected"] < told["nanodollars"]["high"]

    def test_what_speaks_against_it_is_told_and_is_the_exit_code(self, penstock: Penstock, source: str) -> None:
        against = ("--max-cost", "0.000000001", "--until", "2020-01-01T06:00")
        ran = penstock("batch", "plan", source, *ACME, *against)
        assert ran.code == 3
        late, dear = ran.err.splitlines()
        assert late.startswith("not begun: it would end ")
        assert dear.endswith(", and $0.000000001 are allowed; --force begins it all the same")
        ran = penstock("batch", "plan", source, *ACME, *against, "--json")
        assert (ran.code, len(ran.lines[0]["objections"])) == (3, 2)

    def test_every_form_of_an_input(self, penstock: Penstock, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "in.csv").write_text("id,body\n1,The river rose.\n2,It fell.\n")
        (tmp_path / "in").mkdir()
        for name in ("a.txt", "b [1].md"):
            (tmp_path / "in" / name).write_text("The river rose.")
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        mapped = ("--map", "document=body", "--map", "metadata.id=id")
        for count, given in (
            (2, ("in.csv", *mapped)),
            (2, ("in",)),
            (1, ("in/*.txt",)),
            (1, ("in/b [1].md",)),
            (4, ("--query", QUERY, "--source-url", url, *mapped)),
        ):
            [told] = penstock("batch", "plan", *given, *ACME, "--json").lines
            assert (told["items"], told["jobs"]) == (count, count)

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            (("no.jsonl",), "input: 'no.jsonl' names no document"),
            (("in.jsonl", "--prompt", "no"), "prompt: 'no' does not exist"),
            (("in.jsonl", "--map", "document"), "map: 'document' is not FIELD=COLUMN"),
            (("in.jsonl", "--start", "9:30"), "Invalid value for '--start': '9:30' is neither like 22:00"),
            (("in.jsonl", "--until", "24:00"), "Invalid value for '--until': '24:00' is neither like 22:00"),
            (("in.jsonl", "--max-cost", "1e3"), "Invalid value for '--max-cost': '1e3' is no amount in dollars"),
            (("in.jsonl", "--query", QUERY), "name a source, or a --query with its --source-url"),
            ((), "name a source, or a --query with its --source-url"),
            (("--query", QUERY), "--query needs --source-url"),
            (("--query", QUERY, "--source-url", "mysql://a/b"), "--source-url is no address of a Postgres"),
            (("--query", QUERY, "--source-url", "postgresql://a:x/b"), "--source-url is no address of a Postgres"),
            (("--query", QUERY, "--source-url", "postgresql://127.0.0.1:1/b"), "query: connection failed"),
        ],
    )
    @pytest.mark.usefixtures("source")
    def test_what_is_wrong_is_one_line(self, penstock: Penstock, given: tuple[str, ...], error: str) -> None:
        ran = penstock("batch", "plan", *given, *ACME)
        assert (ran.code, ran.error()[: len(error)]) == (2, error)


class TestRun:
    def test_it_begins_once_and_goes_on(self, penstock: Penstock, client: Client, source: str) -> None:
        ran = penstock("batch", "run", "night", source, *ACME, "--max-cost", "1", "--start", "9000-01-01T22:00")
        assert (ran.code, ran.err) == (0, "night: 5 items stored, 1 refused \n")
        assert "begins 9000-01-01 22:00" in ran.out
        first = client.batch_progress("acme", "night")
        assert (first.total, first.refused, first.batch.max_nanodollars) == (4, 1, 10**9)
        ran = penstock("batch", "run", "night", source, *ACME)
        assert (ran.code, ran.err, "expected" in ran.out) == (0, "", False)
        assert replace(client.batch_progress("acme", "night"), now=first.now) == first

    def test_what_cannot_fit_is_not_begun_unless_it_is_forced(
        self, penstock: Penstock, client: Client, source: str
    ) -> None:
        dear = ("batch", "run", "night", source, *ACME, "--max-cost", "0.001", "--json")
        ran = penstock(*dear)
        assert (ran.code, len(ran.lines)) == (3, 1)
        assert client.batches() == []
        ran = penstock(*dear, "--force")
        assert (ran.code, ran.lines[1]["state"], ran.lines[1]["jobs"]) == (0, "running", {"queued": 4})
        assert ran.lines[1]["forecast"]["jobs"] == 4

    def test_another_request_under_its_name_is_refused(self, penstock: Penstock, begun: Client, source: str) -> None:
        ran = penstock("batch", "run", "night", source, *ACME, "--project", "north")
        assert (ran.code, begun.batch_progress("acme", "night").total) == (2, 2)
        assert ran.error().startswith("name: batch 'night' of tenant 'acme' was begun with another prompt")

    @pytest.mark.parametrize("rule", ["errors", "errors>1", "cost>0", "money>1", "cost>nan"])
    def test_a_rule_that_is_none_begins_nothing(
        self, penstock: Penstock, client: Client, source: str, rule: str
    ) -> None:
        ran = penstock("batch", "run", "night", source, *ACME, "--abort-if", rule)
        assert (ran.code, client.batches()) == (2, [])
        assert ran.error().startswith(f"abort_if: '{rule}' is no rule")

    def test_who_waits_is_told_whether_every_document_has_a_result(
        self, penstock: Penstock, begun: Client, engine: Engine, tmp_path: Path
    ) -> None:
        ended(begun, engine)
        night, whole = tmp_path / "night.jsonl", tmp_path / "whole.jsonl"
        night.write_text("".join(json.dumps(item) + "\n" for item in night_items()))
        whole.write_text(json.dumps(documents(1)[0]))
        options = (*ACME, "--tier", "small", "--wait")
        ran = penstock("batch", "run", "night", night, *options)
        assert (ran.code, ran.out) == (1, "night done: 2 of 2 jobs ended (1 succeeded, 1 dead), $0.00\n")
        begun.batch("whole", REQUEST, documents(1))
        succeed(engine, run_some(engine, 1))
        tend(engine, Doorbell(""))
        assert penstock("batch", "run", "whole", whole, *options).code == 0
        ran = penstock("batch", "run", "whole", night, *options)
        assert (ran.code, ran.out) == (2, "")
        assert ran.error().startswith("input: it has more items than the 1 that batch 'whole' was begun with")

    def test_a_batch_that_was_cancelled_is_not_begun_again(self, penstock: Penstock, client: Client) -> None:
        def cancelled() -> Iterator[dict[str, Any]]:
            client.cancel_batch("acme", "night")
            yield from documents(1)

        with pytest.raises(Exception, match="was cancelled"):
            client.batch("night", REQUEST, cancelled())
        ran = penstock("batch", "run", "night", "gone.jsonl", *ACME, "--tier", "small", "--wait")
        assert (ran.code, ran.out) == (2, "")
        assert ran.error() == "batch 'night' of tenant 'acme' was cancelled; give it a new name"

    def test_a_batch_that_stopped_itself_is_not_resumed_by_running_it_again(
        self, penstock: Penstock, begun: Client, engine: Engine, tmp_path: Path
    ) -> None:
        rows.execute(engine, "UPDATE batches SET state = 'stopped', reason = 'too dear'")
        night = tmp_path / "night.jsonl"
        night.write_text("".join(json.dumps(item) + "\n" for item in night_items()))
        assert penstock("batch", "run", "night", night, *ACME, "--tier", "small").code == 1
        assert begun.find_batch("acme", "night").state is BatchState.STOPPED

    @pytest.mark.parametrize(("name", "callback"), [(" night", "reports.done"), ("night", "@reports")])
    def test_names_are_checked_before_the_forecast(
        self, penstock: Penstock, client: Client, source: str, name: str, callback: str
    ) -> None:
        ran = penstock("batch", "run", name, source, *ACME, "--callback", callback)
        assert (ran.code, ran.out, client.batches()) == (2, "", [])
        assert ran.error().startswith(("name: ", "callback: "))


class TestStatus:
    @pytest.mark.usefixtures("begun")
    def test_a_batch_in_lines(self, penstock: Penstock, engine: Engine) -> None:
        succeed(engine, run_some(engine, 1))
        shown = penstock("batch", "status", "night", *ACME).out.splitlines()
        assert shown[:2] == ["night  running", "█" * 15 + "░" * 15 + "  1 of 2 jobs"]
        assert shown[2:5] == [
            "queued 1  succeeded 1",
            "refused 1 items of the input; `penstock batch export --errors` names them",
            "cost $0.00",
        ]
        [told] = penstock("batch", "status", "night", *ACME, "--json").lines
        assert (told["jobs"], told["refused"], told["items"]) == ({"queued": 1, "succeeded": 1}, 1, 3)

    def test_a_list_of_batches(self, penstock: Penstock, begun: Client) -> None:
        begun.batch("day", replace(REQUEST, tenant="globex"), documents(1))
        assert [told["name"] for told in penstock("batch", "list", "--json").lines] == ["day", "night"]
        assert [told["name"] for told in penstock("batch", "list", *ACME, "--json").lines] == ["night"]
        assert "│ globex │ day   │ running │" in penstock("batch", "list").out

    def test_who_watches_through_a_pipe_gets_a_line_a_change(
        self, begun: Client, engine: Engine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        looks = iter([lambda: None, lambda: None, lambda: succeed(engine, run_some(engine, 1)), self.stop(begun)])

        def look() -> Any:
            next(looks)()
            return begun.batch_progress("acme", "night")

        watch(look, every_s=0, as_json=True)
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(each["state"], each["jobs"]) for each in told] == [
            ("running", {"queued": 2}),
            ("running", {"queued": 1, "succeeded": 1}),
            ("paused", {"paused": 1, "succeeded": 1}),
        ]

    @staticmethod
    def stop(client: Client) -> Any:
        return lambda: client.pause_batch("acme", "night")

    def test_what_one_stops_oneself_is_no_error(
        self, penstock: Penstock, begun: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(_seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("time.sleep", stop)
        ran = penstock("batch", "status", "night", *ACME, "--watch")
        assert (ran.code, ran.err.strip()) == (130, "stopped")
        assert begun.find_batch("acme", "night").state is BatchState.RUNNING


def test_a_batch_is_paused_resumed_and_cancelled(penstock: Penstock, begun: Client) -> None:
    for verb, said, state in (
        ("pause", "night is paused; `penstock batch resume night --tenant acme` lets it go on", BatchState.PAUSED),
        ("pause", "night is paused; `penstock batch resume night --tenant acme` lets it go on", BatchState.PAUSED),
        ("resume", "night goes on", BatchState.RUNNING),
        ("cancel", "night is cancelled", BatchState.CANCELLED),
    ):
        ran = penstock("batch", verb, "night", *ACME)
        assert (ran.code, ran.out, ran.err) == (0, said + "\n", "")
        assert begun.find_batch("acme", "night").state is state
    for verb, states in (("pause", "running or stopped"), ("resume", "paused or stopped")):
        ran = penstock("batch", verb, "night", *ACME)
        cure = f"only one that is {states} can be {verb}d"
        assert (ran.code, ran.error()) == (2, f"name: batch 'night' is cancelled; {cure}")


@pytest.mark.parametrize("verb", ["status", "pause", "resume", "cancel", "export", "report"])
def test_a_batch_that_is_not_there_is_named(penstock: Penstock, verb: str) -> None:
    ran = penstock("batch", verb, "no", *ACME)
    assert (ran.code, ran.error()[:43]) == (2, "name: tenant 'acme' has no batch 'no'; see ")


class TestExport:
    def test_results_and_errors_are_files_of_their_own(
        self, penstock: Penstock, begun: Client, engine: Engine, tmp_path: Path
    ) -> None:
        ended(begun, engine)
        ran = penstock("batch", "export", "night", *ACME, "-o", "out.jsonl", "--errors", "errors.jsonl")
        assert (ran.code, ran.out, ran.err) == (0, "", "1 results, 2 items without one\n")
        [result] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert (result["number"], result["result"], result["model_served"]) == (1, "A summary.", "m")
        errors = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
        assert [(error["number"], error["job"] is None) for error in errors] == [(2, True), (3, False)]
        assert errors[1]["reason"] == "bad_request: HTTP 400"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "out.jsonl"]

    @pytest.mark.usefixtures("begun")
    def test_there_may_be_more_while_it_runs(self, penstock: Penstock, engine: Engine) -> None:
        succeed(engine, run_some(engine, 1))
        ran = penstock("batch", "export", "night", *ACME)
        assert (ran.lines[0]["number"], ran.err) == (
            1,
            "1 results; night is running and has not ended: there may be more\n",
        )

    @pytest.mark.usefixtures("begun")
    def test_a_file_that_cannot_be_written_is_named(self, penstock: Penstock) -> None:
        for option in ("-o", "--errors"):
            ran = penstock("batch", "export", "night", *ACME, option, "nowhere/out.jsonl")
            assert (ran.code, ran.error()) == (
                1,
                "Could not open file 'nowhere/out.jsonl': No such file or directory",
            )

    def test_what_fails_in_the_middle_leaves_what_was_there(
        self, begun: Client, engine: Engine, tmp_path: Path
    ) -> None:
        ended(begun, engine)
        path = tmp_path / "out.jsonl"
        path.write_text("earlier")

        def broken(items: Any) -> Iterator[Any]:
            yield from items
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_jsonl(broken(begun.batch_results("acme", "night")), path)
        with pytest.raises(KeyboardInterrupt):
            write_errors(broken(begun.batch_errors("acme", "night")), path)
        assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("out.jsonl", "earlier")]

    @pytest.mark.usefixtures("begun")
    def test_parquet_needs_a_file_and_pyarrow(
        self, penstock: Penstock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        parquet = ("batch", "export", "night", *ACME, "--format", "parquet")
        assert penstock(*parquet).error().startswith("Parquet needs --output")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        ran = penstock(*parquet, "-o", "out.parquet")
        assert (ran.code, ran.error()[:20]) == (2, "Parquet needs pyarro")
        assert list(tmp_path.iterdir()) == []


def test_a_report_stands_beside_another_batch(penstock: Penstock, begun: Client, engine: Engine) -> None:
    begun.batch("before", REQUEST, documents(1))
    succeed(engine, run_some(engine, 3))
    ran = penstock("batch", "report", "night", *ACME, "--against", "before")
    assert (ran.code, ran.err) == (0, "")
    assert [cell.strip() for cell in ran.out.splitlines()[2].split("┃")][1:4] == ["", "before", "night"]
    [told] = penstock("batch", "report", "night", *ACME, "--json").lines
    assert (told["results"], told["measures"]["words"], told["before"], told["moved"]) == (2, 2, None, [])


@pytest.mark.usefixtures("client")
def test_a_result_without_retention_stays_until_an_export_is_whole(
    penstock: Penstock, settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiers.toml", "models.toml", "prices.toml"):
        (tmp_path / name).write_text((settings.config / name).read_text())
    (tmp_path / "tenants.toml").write_text("[tenants.acme]\nretention_days = 0\n")
    with Client(settings.model_copy(update={"config": tmp_path})) as forgetful:
        tenants = forgetful._tenants
        forgetful.batch("night", REQUEST, documents(2))
        succeed(engine, run_some(engine, 2))
        monkeypatch.setenv("PENSTOCK_CONFIG", str(tmp_path))
        export = ("batch", "export", "night", *ACME, "--output", str(tmp_path / "results.jsonl"), "--errors")
        ran = penstock(*export, str(tmp_path / "errors.jsonl"))
        not_all = "2 results, 0 items without one; night is running and has not ended: there may be more\n"
        assert (ran.code, ran.err) == (0, not_all)
        tend(engine, Doorbell(""))
        assert penstock(*export, str(tmp_path / "missing" / "errors.jsonl")).code == 1
        forget(engine, tenants)
        assert [number for number, _ in forgetful.batch_results("acme", "night")] == [1, 2]
        ran = penstock(*export, str(tmp_path / "errors.jsonl"))
        assert (ran.code, ran.err) == (0, "2 results, 0 items without one\n")
        forget(engine, tenants)
        assert list(forgetful.batch_results("acme", "night")) == []
        reasons = [(error.number, error.reason) for error in forgetful.batch_errors("acme", "night")]
        assert reasons == [(number, "its result is no longer kept") for number in (1, 2)]
