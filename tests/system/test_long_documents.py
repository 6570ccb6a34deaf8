"""A novel and the longest documents of the Federal Register, read in parts by pools that are killed with -9."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from bench.chaos.places import WINDOW, write_simulator
from penstock.client import Client
from penstock.failpoints import Failpoint
from penstock.long_documents import AT_ONCE
from penstock.providers.simulator.config import load_config
from penstock.providers.simulator.server import running
from tests.conftest import ROOT
from tests.system.corpus import DOCUMENTS, needs_documents
from tests.system.crash_rig import PLAN, Rig, tenant
from workers.embedded import PostgresServer

NOVEL = DOCUMENTS.parent / "pride-and-prejudice.txt"
TIER, SMALLER = "medium", "small"
SMALL_WINDOW = 16_000
LONGEST = 4
IN_THE_MIDDLE = 12
"""So many answers are kept when the second pool is killed, of some fifty."""

CALLS = """
    SELECT job_id, state, reason, call_id, request_digest,
        EXISTS (SELECT 1 FROM answers WHERE call_id = ledger.call_id) AS is_kept
    FROM ledger
"""


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Processes whose models have a small context window."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True)))
        write_simulator(home / "simulator.toml", [TIER, SMALLER], PLAN)
        simulator = stack.enter_context(running(load_config(home / "simulator.toml")))
        postgres = PostgresServer(home / "postgres")
        stack.callback(postgres.stop)
        postgres.start()
        rig = stack.enter_context(Rig("long", home, postgres, simulator, [TIER]))
        models = home / "long" / "config" / "models.toml"
        models.write_text(models.read_text().replace(f"{WINDOW}", f"{SMALL_WINDOW}"))
        rig.variables["PENSTOCK_PROMPTS"] = str(ROOT / "prompts")
        rig.settings = rig.settings.model_copy(update={"prompts": ROOT / "prompts"})
        yield rig


def submit(rig: Rig) -> list[UUID]:
    with DOCUMENTS.open() as lines:
        register = sorted((json.loads(line)["text"] for line in lines), key=len)[-LONGEST:]
    with Client(rig.settings) as client:
        return client.submit_many(
            {"tenant": tenant(TIER), "prompt": "summarise_document", "tier": TIER, "document": document}
            for document in (NOVEL.read_text(), *register)
        )


def kept(rig: Rig) -> int:
    return int(rig.row(text("SELECT count(*) FROM answers"))[0])


@needs_documents
def test_no_part_is_bought_twice_and_every_cited_section_is_in_the_text(rig: Rig) -> None:
    rig.start("workers.feeder")
    rig.start("workers.worker", "upkeep")
    first = rig.worker(TIER, failpoint=Failpoint.AFTER_SETTLEMENT)
    jobs = submit(rig)
    first.dies()
    second = rig.worker(TIER)
    rig.eventually(lambda: kept(rig) >= IN_THE_MIDDLE)
    second.kill()
    rig.worker(TIER)
    done = [rig.succeeds(job_id) for job_id in jobs]
    rig.close_calls()
    calls = rig.rows(CALLS)
    paid = [call for call in calls if call.state == "settled"]
    lost = [call for call in calls if call.state == "unknown"]
    assert all(call.is_kept for call in paid)
    assert len({(call.job_id, call.request_digest) for call in paid}) == len(paid) == kept(rig)
    assert 0 < len(lost) <= 2 * AT_ONCE * len(jobs)
    assert len(paid) + len(lost) == len(calls)
    assert set(rig.invoice(TIER)) <= {call.call_id for call in calls}
    assert {call.call_id for call in paid} <= set(rig.invoice(TIER))
    for job in done:
        document = rig.row(text("SELECT document FROM payloads WHERE job_id = :id"), id=job.id).document
        assert job.sources
        for source in job.sources:
            assert f"[{source.number}]" in (job.result or "")
            assert 0 <= source.start < source.end <= len(document)
            assert source.heading in document[: source.end]
