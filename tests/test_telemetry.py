"""What is logged is an event of the table, in one JSON object a line, and no text."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from penstock import telemetry

ROOT = Path(__file__).parents[1]
SECRET = "Mr. Bennet owes 4,711 pounds"


def logged(program: str, form: str = "json", level: str = "INFO") -> list[str]:
    """Run a program whose logging is configured as a worker's and give what it logged."""
    begin = f"from penstock import telemetry\ntelemetry.configure_logging({level!r}, {form!r})\n"
    ran = subprocess.run(
        [sys.executable, "-c", begin + program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_event_that_the_table_lacks_is_refused() -> None:
    with capture_logs() as lines, pytest.raises(KeyError, match=r"job\.paused"):
        telemetry.emit("job.paused")
    assert lines == []


@pytest.mark.parametrize("field", ["document", "text", "result", "Job", "reasons"])
def test_field_that_the_table_lacks_is_refused(field: str) -> None:
    with capture_logs() as lines, pytest.raises(ValueError, match=field) as caught:
        telemetry.emit("job.dead", reason="timeout", **{field: SECRET})
    assert SECRET not in str(caught.value)
    assert lines == []


@pytest.mark.parametrize("event", list(telemetry.EVENTS))
def test_every_event_takes_its_own_fields_and_the_bound_ones(event: str) -> None:
    fields: dict[str, Any] = dict.fromkeys((*telemetry.EVENTS[event], *telemetry.BOUND), 1)
    with capture_logs() as lines:
        telemetry.emit(event, **fields)
    assert lines == [{"event": event, "log_level": "info"} | fields]


def test_field_without_a_value_is_left_out() -> None:
    with capture_logs() as lines:
        telemetry.emit("job.dead", reason="timeout", detail=None)
    assert lines == [{"event": "job.dead", "log_level": "info", "reason": "timeout"}]


def test_no_event_has_a_field_for_text() -> None:
    fields = {field for event in telemetry.EVENTS.values() for field in event}
    assert fields & {"text", "document", "variables", "result", "prompt_text", "answer", "message"} == set()


def test_line_is_json_with_the_bound_fields_of_its_own_task() -> None:
    lines = logged(
        "import asyncio\n"
        "async def run(job):\n"
        "    telemetry.bind(job=job, attempt=2, tenant='acme', tier='small')\n"
        "    await asyncio.sleep(0)\n"
        "    telemetry.emit('job.succeeded', model='m', cost_nanodollars=12, latency_s=0.5)\n"
        "async def both():\n"
        "    await asyncio.gather(run('one'), run('two'))\n"
        "asyncio.run(both())\n"
        "telemetry.emit('feeder.released', tier='small', jobs=3)\n"
    )
    read = [json.loads(line) for line in lines]
    for line in read:
        assert line.pop("timestamp").endswith("Z")
    common = {"event": "job.succeeded", "level": "info", "logger": "penstock"}
    bound = {"attempt": 2, "tenant": "acme", "tier": "small", "model": "m", "cost_nanodollars": 12, "latency_s": 0.5}
    assert read[:2] == [common | bound | {"job": "one"}, common | bound | {"job": "two"}]
    assert read[2] == {
        "event": "feeder.released",
        "level": "info",
        "logger": "penstock",
        "tier": "small",
        "jobs": 3,
    }


def test_lines_of_other_libraries_are_json_too() -> None:
    [line] = logged("import logging\nlogging.getLogger('celery').warning('connection to %s lost', 'broker')\n")
    read = json.loads(line)
    assert (read["event"], read["level"], read["logger"]) == ("connection to broker lost", "warning", "celery")


def test_value_with_line_ends_stays_on_one_line() -> None:
    [line] = logged("telemetry.emit('job.dead', reason='internal', detail='a\\nb\\u2028c\\x1b[31m')\n")
    assert json.loads(line)["detail"] == "a\nb\u2028c\x1b[31m"


def test_fault_of_our_own_is_logged_by_its_place_without_its_words() -> None:
    [line] = logged(
        f"def broken(text):\n    raise ValueError(text)\ntry:\n    broken({SECRET!r})\n"
        "except ValueError as error:\n    telemetry.failed(error)\n"
    )
    read = json.loads(line)
    assert (read["event"], read["level"], read["error"]) == ("internal_error", "error", "ValueError")
    assert read["where"][-1].endswith(" in broken")
    assert SECRET not in line


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("pretty", False), ("auto", True)])
def test_form_is_json_unless_a_person_looks(form: str, is_json: bool) -> None:  # noqa: FBT001 - pytest gives it
    [line] = logged("telemetry.emit('job.fenced', job='one')\n", form=form)
    assert line.startswith("{") is is_json
    assert "job.fenced" in line


def test_level_is_kept() -> None:
    assert logged("telemetry.emit('job.fenced')\n", level="WARNING") == []
