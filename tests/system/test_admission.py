"""A night batch of four tenants beside people, at a provider's limits, by real processes: what the provider sees."""

import math
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from penstock.client import Client
from penstock.settings import load_settings
from penstock.store.db import sync_engine
from tests.conftest import ROOT
from workers.stack import Stack

PROMPT = "summarise_document"
SIZES = {"tenant-a": 500, "tenant-b": 1_500, "tenant-c": 3_000, "tenant-d": 10_000}
RPM, TPM = 600, 480_000
TOKENS_PER_S = TPM / 60
WARM_UP_S, ENDS_S = 3.0, 25.0
BACKLOG_TOKENS = 1.5 * TOKENS_PER_S * ENDS_S / len(SIZES)
LEAST_CHARGE, LARGEST = 768, 10_000
EVERY_S = 0.5
BYTES_PER_TOKEN = 4
VARIANTS = 3
FEW = 5
WORDS = ("water", "gate", "level", "river", "valve", "pump", "basin", "flood", "meter", "canal", "lock", "weir")

CONFIG = {
    "tiers.toml": """
        [tiers.small]
        deployments = ["sim-small"]
        processes = 2
        concurrency = 40
        timeout_s = 60
        max_failures = 5
    """,
    "models.toml": f"""
        [models.sim-small]
        model = "openai/sim-small"
        account = "simulator"
        quota = "sim-small"
        api_base = "http://127.0.0.1:8091/v1"
        api_base_env = "PENSTOCK_SIMULATOR_URL"
        context_window = 200_000
        max_output_tokens = 4096
        [quotas.sim-small]
        rpm = {RPM}
        tpm = {TPM}
        concurrency = 100
    """,
    "prices.toml": """
        [[prices.sim-small]]
        starts = 2026-01-01
        input = "0.15"
        cached_input = "0.15"
        output = "0.60"
    """,
    "simulator.toml": f"""
        seed = 1
        burst_s = 10
        [models.sim-small]
        rpm = {RPM}
        tpm = {TPM}
        max_concurrency = 100
        context_window = 200_000
        max_output = 4096
        latency = {{ median_ms = 200, sigma = 0.3 }}
        prices = {{ input = "0.15", cached_input = "0.15", output = "0.60" }}
    """,
}

CALLS = text("""
    SELECT extract(epoch FROM intended_at)::float8 AS at_s, tenant,
        (input_tokens + cached_input_tokens + output_tokens)::bigint AS tokens
    FROM ledger WHERE tenant LIKE 'tenant-%' AND state = 'settled' ORDER BY intended_at
""")
QUEUED = text("SELECT tenant, count(*) AS jobs FROM jobs WHERE state = 'queued' AND lane = 'batch' GROUP BY tenant")
WAITS = text("""
    SELECT extract(epoch FROM coalesce(ledger.intended_at, now()) - jobs.created_at)::float8
    FROM jobs LEFT JOIN ledger ON ledger.job_id = jobs.id WHERE jobs.lane = 'interactive'
""")


@dataclass(frozen=True)
class Took:
    """Tokens that a call took, and when, on some clock; whose they were where that is known."""

    at_s: float
    tokens: int
    tenant: str = ""


@dataclass(frozen=True)
class Seen:
    """What a run left: at the provider, in the ledger, as a backlog, as waits of people, in the logs of the workers."""

    charges: list[Took]
    statuses: dict[str, int]
    calls: list[Took]
    queued: Counter[str]
    asked: int
    waits_s: list[float]
    claims: int
    deferrals: int


def words(tokens: int, seed: str) -> str:
    """Make a text of about so many tokens, always the same one."""
    source, sentences, size = random.Random(seed), list[str](), 0
    while size < tokens * BYTES_PER_TOKEN:
        sentence = " ".join(source.choices(WORDS, k=12)).capitalize() + f" {source.randrange(10**6)}."
        sentences.append(sentence)
        size += len(sentence) + 1
    return " ".join(sentences)


def batch(tenant: str) -> list[dict[str, Any]]:
    """Make a batch of one tenant that outlasts the run."""
    tokens = SIZES[tenant]
    return [
        {
            "tenant": tenant,
            "prompt": PROMPT,
            "lane": "batch",
            "fresh": True,
            "document": words(tokens, f"{tenant}-{number % VARIANTS}"),
        }
        for number in range(math.ceil(BACKLOG_TOKENS / max(tokens, LEAST_CHARGE)))
    ]


def window(took: list[Took]) -> list[Took]:
    """Give what came after the first of the largest calls past the warm-up, up to the last of them.

    The bucket is as empty after the one as after the other, and the tenant with the largest jobs got whole ones.
    """
    large = [n for n, each in enumerate(took) if each.tokens >= LARGEST and each.at_s >= took[0].at_s + WARM_UP_S]
    assert len(large) >= 3, "the largest calls came too seldom"
    return took[large[0] : large[-1] + 1]


def jain(shares: Collection[int]) -> float:
    """Give Jain's fairness index: 1 when all shares are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def interactive(client: Client, until_s: float) -> list[UUID]:
    """Ask for something twice a second, as people do beside a batch."""
    ids: list[UUID] = []
    while (now_s := time.monotonic()) < until_s:
        document = words(300, f"desk-{len(ids) % VARIANTS}")
        ids.append(client.submit(tenant="desk", prompt=PROMPT, document=document, fresh=True))
        time.sleep(max(0.0, now_s + EVERY_S - time.monotonic()))
    return ids


def write_folders(home: Path) -> None:
    """Write the configuration of one tier, and a prompt that asks for it."""
    for name, content in CONFIG.items():
        path = home / "config" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    shutil.copytree(ROOT / "prompts" / PROMPT / "1.0.0", home / "prompts" / PROMPT / "1.0.0")
    manifest = home / "prompts" / PROMPT / "1.0.0" / "prompt.toml"
    manifest.write_text(manifest.read_text().replace('default_tier = "medium"', 'default_tier = "small"'))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two pool processes of one tier, feeder, upkeep, and the simulator with limits of its own."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder)
        write_folders(home)
        for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
            patch.delenv(name)
        patch.setenv("PENSTOCK_HOME", str(home))
        patch.setenv("PENSTOCK_CONFIG", str(home / "config"))
        patch.setenv("PENSTOCK_PROMPTS", str(home / "prompts"))
        with Stack(flower=False, tell=lambda _: None) as running:
            yield running


@pytest.fixture(scope="module")
def seen(stack: Stack) -> Seen:
    """Hand in the batches one after the other, ask beside them, and look while all tenants still have a backlog."""
    engine = sync_engine(load_settings().require_database_url())
    with Client(load_settings()) as client:
        for tenant in SIZES:
            client.submit_many(batch(tenant))
        ids = interactive(client, time.monotonic() + ENDS_S)
        with engine.connect() as connection:
            calls = [Took(row.at_s, row.tokens, row.tenant) for row in connection.execute(CALLS)]
            queued = Counter({row.tenant: int(row.jobs) for row in connection.execute(QUEUED)})
        rows = httpx.get(f"{stack.simulator_url}/accepted?model=sim-small").json()
        client.wait_all(ids, timeout_s=10)
    with engine.connect() as connection:
        waits_s = list(connection.scalars(WAITS))
    engine.dispose()
    log = "".join(service.log.read_text() for service in stack.services)
    return Seen(
        charges=[Took(row[0], row[3]) for row in rows],
        statuses=httpx.get(f"{stack.simulator_url}/stats").json()["models"]["sim-small"]["statuses"],
        calls=calls,
        queued=queued,
        asked=len(ids),
        waits_s=waits_s,
        claims=log.count("job.claimed"),
        deferrals=log.count("job.deferred"),
    )


def test_the_provider_refuses_no_call(seen: Seen) -> None:
    assert set(seen.statuses) == {"200"}
    assert seen.statuses["200"] > ENDS_S


def test_the_quota_is_used_and_no_more_of_it_than_flows_in(seen: Seen) -> None:
    first, *rest = window(seen.charges)
    allowed = TOKENS_PER_S * (rest[-1].at_s - first.at_s)
    assert 0.95 <= sum(each.tokens for each in rest) / allowed <= 1.05


def test_people_do_not_wait_behind_the_batch(seen: Seen) -> None:
    assert seen.asked == len(seen.waits_s) >= ENDS_S
    assert sorted(seen.waits_s)[math.ceil(0.95 * seen.asked) - 1] <= 1.0


def test_tenants_with_a_backlog_share_by_tokens(seen: Seen) -> None:
    assert set(seen.queued) == set(SIZES)
    used = Counter[str]()
    for each in window(seen.calls)[1:]:
        used[each.tenant] += each.tokens
    assert set(used) == set(SIZES)
    assert jain(used.values()) >= 0.98


def test_hardly_anything_is_put_off(seen: Seen) -> None:
    assert seen.claims >= len(seen.charges)
    assert seen.deferrals <= FEW
