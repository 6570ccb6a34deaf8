"""Why a job waits: each cause with its words and its end, the same through the client and the command."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
import redis
from sqlalchemy import Engine

from penstock.client import Client
from penstock.errors import ConfigurationError, JobNotFoundError, Reason
from penstock.gates.breaker import Breaker, BreakerSettings, Ticket
from penstock.gates.limiter import Ask, Grant, Limiter
from penstock.gates.scripts import AsyncScripts, SyncScripts
from penstock.jobs import leases
from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.jobs.waiting import standing
from penstock.routing import Catalogue
from penstock.schemas import JobState, Lane, Resource
from penstock.settings import Settings
from penstock.store.redis import async_redis, sync_redis
from penstock.tenants import Tenants
from penstock.waiting import Cause, Explanation, Gates, explain
from tests import test_cli
from tests.jobs import rows
from tests.test_cli import Penstock

bare, penstock, client = test_cli.bare, test_cli.penstock, test_cli.client

START_MS = 1_800_000_000_000
NOWHERE = "unix:///nowhere/redis.sock"
TURN = "nothing holds it, and the feeder releases it next; if it stays, no feeder runs"
TIERS = {name: [name] for name in ("requests", "tokens", "split", "places", "free")} | {"pair": ["tokens", "places"]}

TIER_TOML = """
[tiers.{name}]
deployments = {deployments}
concurrency = 5
timeout_s = 60
max_failures = 5
"""

MODEL_TOML = """
[models.{name}]
model = "openai/{name}"
account = "acme"
{quota}
api_key_env = "A_KEY_THAT_IS_NOT_SET"
context_window = 1000
max_output_tokens = 100
"""

QUOTAS_TOML = """
[quotas.requests]
rpm = 60
[quotas.tokens]
tpm = 60
[quotas.split]
itpm = 60
otpm = 60
charge = "input, output"
[quotas.places]
concurrency = 2
"""
"""One a second of each resource, five at most; a pool begins with one."""

TENANTS_TOML = """
[tenants.capped]
concurrency = 2
"""


@pytest.fixture
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a tier for each way to be held."""
    folder = tmp_path_factory.mktemp("config")
    tiers = [TIER_TOML.format(name=name, deployments=deployments) for name, deployments in TIERS.items()]
    models = [
        MODEL_TOML.format(name=name, quota="" if name == "free" else f'quota = "{name}"')
        for name in TIERS
        if name != "pair"
    ]
    (folder / "tiers.toml").write_text("".join(tiers))
    (folder / "models.toml").write_text("".join(models) + QUOTAS_TOML)
    (folder / "tenants.toml").write_text(TENANTS_TOML)
    return settings.model_copy(update={"config": folder})


@dataclass
class Site:
    """Rows on a real Postgres, and gates on a real Redis whose clock stands still until a test moves it."""

    engine: Engine
    redis: redis.Redis
    url: str
    config: Path
    now_ms: float = START_MS

    def queue(self, tier: str, number: int = 1, *, lane: Lane = Lane.BATCH, **changes: object) -> UUID:
        """Submit jobs of one token that wait as rows, and give the last."""
        for _ in range(number):
            job = rows.new_job(**{"tier": tier, "lane": lane, "estimated_tokens": 1} | changes)
            rows.submit(self.engine, job, window=0)
        return job.id

    def run(self, tier: str, **changes: object) -> ClaimedJob:
        """Submit a job and claim it."""
        job = rows.new_job(**{"tier": tier} | changes)
        rows.submit(self.engine, job)
        claimed = rows.claim(self.engine, job.id)
        assert claimed is not None
        return claimed

    def end(self, tier: str, outcome: Outcome, reason: Reason, detail: str, delay_s: float = 60.0) -> UUID:
        """Run a job and end its attempt."""
        job = self.run(tier)
        rows.finish(self.engine, Ending(job.id, job.fence, outcome, reason, detail, delay_s))
        return job.id

    def explain(self, job_id: UUID, url: str | None = None) -> Explanation:
        """Ask the house."""
        with self.engine.connect() as connection:
            job = standing(connection, job_id)
        assert job is not None
        catalogue, tenants = Catalogue.load(self.config, with_keys=False), Tenants.load(self.config)
        with sync_redis(url or self.url) as connected:
            return explain(job, Gates(SyncScripts(connected, lambda: self.now_ms), catalogue, tenants))

    def at_gates(self, use: Callable[[Limiter, Breaker], Awaitable[object]]) -> None:
        """Do something at the gates, at the time of this site."""

        async def used() -> None:
            connected = async_redis(self.url)
            scripts = AsyncScripts(connected, lambda: self.now_ms)
            try:
                await use(Limiter(scripts), Breaker(scripts, BreakerSettings(), jitter=lambda: 0.5))
            finally:
                await connected.aclose()

        asyncio.run(used())

    def take(self, quota: str, units: dict[Resource, int], *, throttled_s: float | None = None) -> None:
        """Take units of a quota, and hear of a 429 then if wanted."""

        async def take(limiter: Limiter, _: Breaker) -> None:
            known = {
                deployment.quota.name: deployment.quota
                for tier in TIERS
                for deployment in Catalogue.load(self.config, with_keys=False).deployments(tier)
                if deployment.quota
            }
            grant = await limiter.acquire(known[quota], Ask(uuid4(), "somebody", Lane.INTERACTIVE, units))
            assert isinstance(grant, Grant)
            if throttled_s is not None:
                await limiter.throttled(grant, throttled_s)

        self.at_gates(take)

    def open_breaker(self, deployment: str, *, probe_s: float | None = None) -> None:
        """Let a deployment fail until its breaker opens for 5 s; with `probe_s` they are over, and a probe is out."""

        async def fail(_: Limiter, breaker: Breaker) -> None:
            for _call in range(5):
                ticket = await breaker.admit(deployment, probe_s=60)
                assert isinstance(ticket, Ticket)
                await breaker.failed(ticket)

        async def probe(_: Limiter, breaker: Breaker) -> None:
            assert isinstance(await breaker.admit(deployment, probe_s=probe_s or 0), Ticket)

        self.at_gates(fail)
        if probe_s is not None:
            self.now_ms += 5000
            self.at_gates(probe)

    def everything(self) -> object:
        """Read every row, and every key of Redis."""
        return rows.everything(self.engine), {key: self.dump(str(key)) for key in self.redis.scan_iter()}

    def dump(self, key: str) -> object:
        """Read a key of any type."""
        return {
            "hash": self.redis.hgetall,
            "zset": lambda name: self.redis.zrange(name, 0, -1, withscores=True),
            "list": lambda name: self.redis.lrange(name, 0, -1),
            "set": self.redis.smembers,
            "string": self.redis.get,
        }[str(self.redis.type(key))](key)


@pytest.fixture
def site(engine: Engine, broker: redis.Redis, settings: Settings) -> Site:
    """Empty tables and gates, and a worker of each tier."""
    rows.start_worker(engine)
    with engine.begin() as connection:
        for tier in TIERS:
            leases.renew(connection, f"worker-of-{tier}", 60, tier)
    return Site(engine, broker, settings.require_redis_url(), settings.config)


@dataclass(frozen=True)
class Case:
    """A job brought to where it waits, and what is to be said of it; `wait_s` is None where no end is known."""

    name: str
    arrange: Callable[[Site], UUID]
    cause: Cause
    detail: str
    wait_s: float | None = None


def ended(state: JobState) -> Callable[[Site], UUID]:
    def arrange(site: Site) -> UUID:
        job_id = site.queue("free")
        rows.execute(site.engine, "UPDATE jobs SET state = :state", state=state)
        return job_id

    return arrange


def without_worker(state: JobState) -> Callable[[Site], UUID]:
    def arrange(site: Site) -> UUID:
        job_id = site.queue("free")
        rows.execute(
            site.engine,
            "UPDATE jobs SET state = :state, due_at = now() + interval '1 hour', reason = 'timeout'",
            state=state,
        )
        rows.expire_lease(site.engine, "worker-of-free")
        return job_id

    return arrange


def released(site: Site) -> UUID:
    job = rows.new_job(tier="free")
    rows.submit(site.engine, job)
    return job.id


def limited(quota: str, *resources: Resource) -> Callable[[Site], UUID]:
    """Use up what a pool begins with, and look 400 ms later: 600 ms are left until there is one again."""

    def arrange(site: Site) -> UUID:
        units = dict.fromkeys((Resource.INPUT_TOKENS, Resource.OUTPUT_TOKENS), 0) if quota == "split" else {}
        site.take(quota, units | dict.fromkeys(resources, 1))
        site.now_ms += 400
        return site.queue(quota, lane=Lane.INTERACTIVE)

    return arrange


def frozen(site: Site) -> UUID:
    site.take("tokens", {Resource.TOKENS: 1}, throttled_s=7.0)
    return site.queue("tokens")


def without_place(lane: Lane, calls: int) -> Callable[[Site], UUID]:
    def arrange(site: Site) -> UUID:
        for _ in range(calls):
            site.take("places", {})
        return site.queue("places", lane=lane)

    return arrange


def broken(site: Site) -> UUID:
    site.open_breaker("free")
    site.now_ms += 1500
    return site.queue("free")


def probed(site: Site) -> UUID:
    site.open_breaker("free", probe_s=65.0)
    site.now_ms += 1000
    return site.queue("free")


def broken_and_limited(site: Site) -> UUID:
    """Hold both deployments of a tier, one for five seconds and the other for one."""
    site.open_breaker("places")
    site.take("tokens", {Resource.TOKENS: 1})
    return site.queue("pair", lane=Lane.INTERACTIVE)


def broken_and_without_place(site: Site) -> UUID:
    site.open_breaker("tokens")
    return without_place(Lane.INTERACTIVE, 2)(site) and site.queue("pair", lane=Lane.INTERACTIVE)


def one_of_two(site: Site) -> UUID:
    site.open_breaker("tokens")
    return site.queue("pair")


def outstanding(jobs: int) -> Callable[[Site], UUID]:
    def arrange(site: Site) -> UUID:
        for _ in range(jobs):
            site.run("free", tenant="capped")
        return site.queue("free", tenant="capped")

    return arrange


def in_line(own: int, others: int) -> Callable[[Site], UUID]:
    def arrange(site: Site) -> UUID:
        for tenant, number in {"acme": own, "other": others}.items():
            if number:
                site.queue("free", number, tenant=tenant)
        return site.queue("free")

    return arrange


def limited_in_line(site: Site) -> UUID:
    in_line(2, 3)(site)
    return limited("requests", Resource.REQUESTS)(site)


ONES = [
    Case("succeeded", ended(JobState.SUCCEEDED), Cause.ENDED, "succeeded"),
    Case("cancelled", ended(JobState.CANCELLED), Cause.ENDED, "cancelled"),
    Case("running", lambda site: site.run("free").id, Cause.RUNNING, "attempt 1 is under way"),
    *(
        Case(
            f"no-worker-{state}",
            without_worker(state),
            Cause.WORKER,
            "no worker of tier free is alive; start one: `penstock worker free`",
        )
        for state in (JobState.QUEUED, JobState.RELEASED, JobState.RETRYING)
    ),
    Case("released", released, Cause.SLOT, "its message is out, and a worker takes it when a slot is free"),
    Case("requests", limited("requests", Resource.REQUESTS), Cause.LIMITED, "requests of quota requests", 0.6),
    Case("tokens", limited("tokens", Resource.TOKENS), Cause.LIMITED, "tokens of quota tokens", 0.6),
    Case("input", limited("split", Resource.INPUT_TOKENS), Cause.LIMITED, "input_tokens of quota split", 0.6),
    Case("output", limited("split", Resource.OUTPUT_TOKENS), Cause.LIMITED, "output_tokens of quota split", 0.6),
    Case("frozen", frozen, Cause.LIMITED, "the provider throttled quota tokens", 7.0),
    Case(
        "no-place",
        without_place(Lane.INTERACTIVE, 2),
        Cause.LIMITED,
        "all calls that quota places allows at once are in flight",
    ),
    Case(
        "no-place-for-batch",
        without_place(Lane.BATCH, 2),
        Cause.LIMITED,
        "all calls that quota places allows at once are in flight",
    ),
    Case("breaker", broken, Cause.BREAKER, "the breaker of free is open", 3.5),
    Case("probe", probed, Cause.BREAKER, "the breaker of free has a probe out", 64.0),
    Case("first-of-two", broken_and_limited, Cause.LIMITED, "tokens of quota tokens", 1.0),
    Case("known-of-two", broken_and_without_place, Cause.BREAKER, "the breaker of tokens is open", 5.0),
    Case(
        "one-of-two",
        one_of_two,
        Cause.TURN,
        TURN,
    ),
    Case("concurrency", outstanding(2), Cause.SHARE, "tenant capped has 2 jobs under way, and may have 2"),
    Case(
        "below-concurrency",
        outstanding(1),
        Cause.TURN,
        TURN,
    ),
    Case(
        "share",
        in_line(3, 4),
        Cause.SHARE,
        "the feeder releases 3 jobs of its tenant first, 4 jobs of other tenants in turns",
    ),
    Case("limited-before-share", limited_in_line, Cause.LIMITED, "requests of quota requests", 0.6),
    Case(
        "turn",
        in_line(0, 0),
        Cause.TURN,
        TURN,
    ),
]


def check(case: Case, explanation: Explanation, since: datetime) -> None:
    """Hold an explanation that was asked for at `since` against a case."""
    assert (explanation.cause, explanation.detail) == (case.cause, case.detail)
    if case.wait_s is None:
        assert explanation.until is None
        return
    assert explanation.until is not None
    rounding = timedelta(microseconds=1)
    wait = timedelta(seconds=case.wait_s)
    assert since + wait - rounding <= explanation.until <= datetime.now(UTC) + wait + rounding


@pytest.mark.parametrize("case", ONES, ids=lambda case: case.name)
def test_each_cause_has_its_words_and_its_end_and_asking_changes_nothing(site: Site, case: Case) -> None:
    job_id = case.arrange(site)
    before = site.everything()
    since = datetime.now(UTC)
    check(case, site.explain(job_id), since)
    assert site.everything() == before


@pytest.mark.parametrize(
    ("outcome", "reason", "detail", "cause"),
    [
        (Outcome.RETRIED, Reason.SERVER_ERROR, "status=500", Cause.BACKOFF),
        (Outcome.RETRIED, Reason.THROTTLED, "status=429", Cause.BACKOFF),
        (Outcome.DEFERRED, Reason.LIMITED, "tokens of quota tokens", Cause.LIMITED),
        (Outcome.DEFERRED, Reason.UNAVAILABLE, "the breaker of free is open", Cause.BREAKER),
        (Outcome.DEFERRED, Reason.LIMITER_AWAY, "Redis is away, and batch waits for it", Cause.REDIS),
        (Outcome.DEFERRED, Reason.IN_FLIGHT, "another job of its tenant is asking the same", Cause.IN_FLIGHT),
    ],
)
def test_a_job_that_is_put_off_says_what_its_last_attempt_met_and_when_it_is_due(
    site: Site, outcome: Outcome, reason: Reason, detail: str, cause: Cause
) -> None:
    job_id = site.end("free", outcome, reason, detail)
    before = site.everything()
    due_at = rows.row(site.engine, job_id)["due_at"]
    assert site.explain(job_id) == Explanation(cause, detail, due_at)
    assert site.explain(job_id, NOWHERE) == Explanation(cause, detail, due_at)
    assert site.everything() == before


@pytest.mark.parametrize(
    ("lane", "what"),
    [(Lane.BATCH, "batch stops until it is back"), (Lane.INTERACTIVE, "interactive has a share of the rate")],
)
def test_redis_away_is_told_with_what_becomes_of_the_lane(site: Site, lane: Lane, what: str) -> None:
    job_id = site.queue("tokens", lane=lane)
    before = rows.everything(site.engine)
    explanation = site.explain(job_id, NOWHERE)
    assert explanation == Explanation(Cause.REDIS, f"Redis is away (ConnectionError): {what}")
    assert rows.everything(site.engine) == before


def test_a_dead_job_says_of_what_and_where_to_look(site: Site) -> None:
    job_id = ended(JobState.DEAD)(site)
    reason = rows.row(site.engine, job_id)["reason"]
    detail = f"dead with reason {reason}; see `penstock dead show {job_id}`"
    assert site.explain(job_id) == Explanation(Cause.ENDED, detail)


def test_priority_and_age_say_who_goes_first(site: Site) -> None:
    ids = [site.queue("free", priority=priority) for priority in (5, 9, 5, 0)]
    details = [site.explain(job_id).detail for job_id in (ids[0], ids[2], ids[3])]
    assert details == [f"the feeder releases {jobs} of its tenant first" for jobs in ("1 job", "2 jobs", "3 jobs")]
    assert site.explain(ids[1]).cause is Cause.TURN


@pytest.mark.parametrize(("needs", "wait_s"), [(2, 1.0), (4, 3.0), (5, 4.0), (50, 4.0)])
def test_a_large_job_waits_for_its_tokens_and_at_most_for_a_full_bucket(site: Site, needs: int, wait_s: float) -> None:
    """A pool begins with one token; the feeder lets nobody pass the first job that does not fit."""
    site.take("tokens", {Resource.TOKENS: 0})
    job_id = site.queue("tokens", lane=Lane.INTERACTIVE, estimated_tokens=needs)
    since = datetime.now(UTC)
    check(Case("", one_of_two, Cause.LIMITED, "tokens of quota tokens", wait_s), site.explain(job_id), since)


def test_a_debt_is_waited_for(site: Site) -> None:
    site.take("tokens", {Resource.TOKENS: 0})
    site.now_ms += 60_000
    site.take("tokens", {Resource.TOKENS: 8})  # of a bucket of five
    job_id = site.queue("tokens", lane=Lane.INTERACTIVE)
    since = datetime.now(UTC)
    check(Case("", one_of_two, Cause.LIMITED, "tokens of quota tokens", 4.0), site.explain(job_id), since)


def test_a_due_retry_waits_for_no_queued_job(site: Site) -> None:
    job_id = site.end("free", Outcome.RETRIED, Reason.SERVER_ERROR, "status=500", delay_s=0.0)
    in_line(3, 4)(site)
    rows.execute(site.engine, "UPDATE jobs SET lane = 'batch', created_at = now() WHERE id = :id", id=job_id)
    before = site.everything()
    assert site.explain(job_id).cause is Cause.TURN
    assert site.everything() == before


def test_the_client_says_the_same(site: Site, client: Client) -> None:
    job_id = in_line(3, 4)(site)
    expected = Explanation(
        Cause.SHARE, "the feeder releases 3 jobs of its tenant first, 4 jobs of other tenants in turns"
    )
    assert client.why(job_id) == client.why(str(job_id)) == site.explain(job_id) == expected


def test_the_client_looks_at_the_gates_by_their_own_clock(site: Site, client: Client) -> None:
    site.now_ms = round(datetime.now(UTC).timestamp() * 1000)
    site.open_breaker("free")
    job_id = site.queue("free")
    before = site.everything()
    explanation = client.why(job_id)
    assert (explanation.cause, explanation.detail) == (Cause.BREAKER, "the breaker of free is open")
    assert explanation.until is not None
    opened_at = datetime.fromtimestamp(site.now_ms / 1000, UTC)
    assert abs(explanation.until - opened_at - timedelta(seconds=5)) < timedelta(milliseconds=100)
    assert site.everything() == before


def test_the_client_tells_that_redis_is_away(site: Site, settings: Settings) -> None:
    job_id = site.queue("tokens")
    away = Settings.model_validate(dict(settings) | {"redis_url": NOWHERE})
    with Client(away) as client:
        assert client.why(job_id).cause is Cause.REDIS


@pytest.mark.parametrize("job_id", [uuid4(), str(uuid4()), "7"], ids=["uuid", "text", "no-id"])
def test_the_client_knows_no_such_job(site: Site, client: Client, job_id: UUID | str) -> None:
    with pytest.raises(JobNotFoundError, match=f"there is no job .*{job_id}"):
        client.why(job_id)


def test_the_client_needs_models_toml(site: Site, client: Client) -> None:
    (site.config / "models.toml").unlink()
    job_id = site.queue("free")
    with pytest.raises(ConfigurationError, match=r"models\.toml, the file itself: it does not exist"):
        client.why(job_id)


def test_command_says_it_in_a_line(site: Site, penstock: Penstock) -> None:
    ran = penstock("jobs", "why", in_line(3, 4)(site))
    assert (ran.code, ran.err) == (0, "")
    said = "the feeder releases 3 jobs of its tenant first, 4 jobs of other tenants in turns"
    assert ran.out == f"tenant_share: {said}\n"


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[ZoneInfo]:
    """Read the clock in Nepal, five and three quarter hours before Greenwich."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        yield ZoneInfo("Asia/Kathmandu")
    time.tzset()


def test_command_says_until_when_by_the_clock_of_the_reader(site: Site, penstock: Penstock, far_away: ZoneInfo) -> None:
    job_id = site.end("free", Outcome.RETRIED, Reason.SERVER_ERROR, "status=500")
    ran = penstock("jobs", "why", job_id)
    due_at = rows.row(site.engine, job_id)["due_at"].astimezone(far_away)
    shown = re.escape(f"backoff: status=500, until {due_at:%Y-%m-%d %H:%M:%S}")
    assert re.fullmatch(rf"{shown} \(in (5\d\.\d|60\.0) s\)\n", ran.out)


def test_command_as_json_is_an_object(site: Site, penstock: Penstock) -> None:
    put_off = site.end("free", Outcome.RETRIED, Reason.SERVER_ERROR, "status=500")
    [line] = penstock("jobs", "why", put_off, "--json").lines
    assert (line.pop("cause"), line.pop("detail")) == ("backoff", "status=500")
    assert datetime.fromisoformat(line.pop("until")) == rows.row(site.engine, put_off)["due_at"]
    assert line == {}
    assert penstock("jobs", "why", site.run("free").id, "--json").lines == [
        {"cause": "running", "detail": "attempt 1 is under way", "until": None}
    ]


def test_command_tells_that_redis_is_away(site: Site, penstock: Penstock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_REDIS_URL", NOWHERE)
    ran = penstock("jobs", "why", site.queue("tokens"))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "redis_away: Redis is away (ConnectionError): batch stops until it is back\n"


def test_command_knows_no_such_job(site: Site, penstock: Penstock) -> None:
    before = site.everything()
    job_id = uuid4()
    for arguments in ([], ["--json"]):
        ran = penstock("jobs", "why", job_id, *arguments)
        assert (ran.code, ran.error()) == (1, f"there is no job {job_id}")
    assert site.everything() == before


@pytest.mark.parametrize(("arguments", "says"), [(["7"], "'7' is not a valid UUID"), ([], "Missing argument 'JOB_ID'")])
def test_command_wants_an_id(penstock: Penstock, arguments: list[str], says: str) -> None:
    ran = penstock("jobs", "why", *arguments)
    assert ran.code == 2
    assert says in ran.error()


def test_command_without_models_toml_tells_the_cure(site: Site, penstock: Penstock) -> None:
    job_id = site.queue("free")
    path = site.config / "models.toml"
    path.unlink()
    ran = penstock("jobs", "why", job_id)
    assert (ran.code, ran.error()) == (
        2,
        f"{path}, the file itself: it does not exist; create it, or point PENSTOCK_CONFIG at its folder",
    )
