"""Over any time t, no more than a bucket and t of the rate is sent, whatever is asked, settled and refused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from penstock.gates.limiter import LEASE_MS, LONGEST_WAIT_MS, Grant, Limited
from penstock.providers.quota import Quota
from penstock.schemas import Lane, Resource
from tests.gates.quota_pool import START_MS, Pool

BUCKET = 5000
CONCURRENCY, OF_A_TENANT = 8, 4
ROUNDING = 1.001
"""Units: a wait is rounded up to a millisecond, in which one unit flows, and a level to a millionth."""

ONE = Quota(name="one", tpm=60_000, concurrency=CONCURRENCY)
TWO = Quota(name="two", tpm=60_000, rpm=60, concurrency=CONCURRENCY)

numbers = count()


@dataclass(frozen=True)
class Step:
    """After `wait_ms`, ask `times` for `units`; take all there is (drain); end the call granted `ago` calls before.

    A cycle takes all there is, settles it, settles it again, and takes all there is.
    """

    wait_ms: int
    kind: str
    units: int = 0
    times: int = 1
    lane: Lane = Lane.INTERACTIVE
    tenant: str = "one"
    ago: int = 0
    share: float = 1.0


@dataclass
class Call:
    """What became of a grant."""

    grant: Grant
    units: int
    send_at: float
    ends_at: float
    is_over: bool = False


@dataclass
class Run:
    """What the steps lead to: `sent` has what left and what came back, by time, in the order of the calls."""

    pool: Pool
    sent: list[tuple[float, float]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    largest: int = 0

    def take(self, step: Step) -> None:
        self.pool.pass_ms(step.wait_ms)
        if step.kind == "ask":
            for _ in range(step.times):
                self.ask(step.lane, step.tenant, step.units)
        elif step.kind == "drain":
            self.drain(step)
        elif step.kind == "cycle":
            self.drain(step)
            for call in self.calls[-1:] * 2:
                self.end(call, step)
            self.drain(step)
        elif self.calls:
            self.end(self.calls[-1 - step.ago % len(self.calls)], step)
        in_flight = self.in_flight()
        assert in_flight.total() <= CONCURRENCY
        assert all(calls <= OF_A_TENANT for calls in in_flight.values())

    def drain(self, step: Step) -> None:
        horizon_s = LONGEST_WAIT_MS[step.lane] / 1000 * min(1, step.share) if step.kind == "drain" else 0
        room = self.pool.look(step.lane, horizon_s=horizon_s).units[Resource.TOKENS]
        self.ask(step.lane, step.tenant, max(0, int(room)))

    def ask(self, lane: Lane, tenant: str, units: int) -> None:
        asked = {name: units if name is Resource.TOKENS else 1 for name in self.pool.quota.per_minute}
        answer = self.pool.ask(asked, lane=lane, tenant=tenant, tenant_concurrency=OF_A_TENANT)
        if isinstance(answer, Grant):
            now = self.pool.now_ms
            self.calls.append(Call(answer, units, now + answer.wait_s * 1000, now + LEASE_MS))
            self.sent.append((now + answer.wait_s * 1000, units))
            self.largest = max(self.largest, units)

    def end(self, call: Call, step: Step) -> None:
        """End a call that was sent and whose lease has not run out."""
        is_lost = self.pool.now_ms >= call.ends_at and not call.is_over
        if is_lost or self.pool.now_ms < call.send_at:
            return
        if step.kind == "throttle":
            self.pool.throttle(call.grant, step.share)
            back = call.units
        else:
            used = {name: round(units * step.share) for name, units in call.grant.ask.units.items()}
            self.pool.settle(call.grant, used)
            back = call.units - used[Resource.TOKENS]
        if not call.is_over and back > 0:
            self.sent.append((self.pool.now_ms, -back))
        call.is_over = True

    def in_flight(self) -> Counter[str]:
        """Count the calls that hold a place, by tenant."""
        return Counter(
            call.grant.ask.tenant for call in self.calls if not call.is_over and self.pool.now_ms < call.ends_at
        )

    def excess(self) -> float:
        """Give by how much the most that was sent in any time is above what is allowed in it."""
        ordered = sorted(self.sent, key=lambda each: each[0])
        total, before, worst = 0.0, float("-inf"), float("-inf")
        for at_ms, units in ordered:
            flowed = at_ms - START_MS
            before = max(before, flowed - total)
            total += units
            worst = max(worst, total - flowed + before)
        return worst - max(BUCKET, self.largest) if self.sent else 0.0


def steps_of(kinds: tuple[str, ...], lanes: tuple[Lane, ...]) -> st.SearchStrategy[list[Step]]:
    """Give lists of steps whose requests are all small, all within the bucket, or larger too."""
    sizes = st.sampled_from([BUCKET // 10, BUCKET, 2 * BUCKET])
    return sizes.flatmap(lambda most: st.lists(step_of(kinds, lanes, most), max_size=30))


def step_of(kinds: tuple[str, ...], lanes: tuple[Lane, ...], most: int) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        wait_ms=st.sampled_from([0, 0, 1, 100, 500, 1000, 4000, 10_000]),
        kind=st.sampled_from(kinds),
        units=st.sampled_from([1, most // 5, most]) | st.integers(1, most),
        times=st.sampled_from([1, 1, 2, 10]),
        lane=st.sampled_from(lanes),
        tenant=st.sampled_from(["one", "two", "three"]),
        ago=st.integers(0, 5),
        share=st.sampled_from([0.0, 0.3, 1.0, 1.2]),
    )


@dataclass
class Search:
    """Many runs at one Redis, each with a pool of its own."""

    pool: Pool

    def prove(
        self, quota: Quota, strategy: st.SearchStrategy[list[Step]], claim: Callable[[Run], None], examples: int = 60
    ) -> None:
        @settings(max_examples=examples, deadline=None)
        @given(strategy)
        def holds(steps: list[Step]) -> None:
            self.pool.now_ms = START_MS
            self.pool.quota = quota.model_copy(update={"name": f"pool {next(numbers)}"})
            run = Run(self.pool)
            for step in steps:
                run.take(step)
            target(run.excess())
            claim(run)

        holds()


@pytest.fixture
def search(pool: Pool) -> Search:
    """A search that looks at no keys, for speed."""
    pool.checked = False
    return Search(pool)


@pytest.mark.parametrize(
    ("quota", "kinds", "lanes", "promised_s"),
    [
        pytest.param(ONE, ("ask", "drain"), (Lane.INTERACTIVE,), 0.0, id="asked"),
        pytest.param(ONE, ("ask", "drain", "settle", "cycle"), (Lane.INTERACTIVE,), 0.0, id="settled"),
        pytest.param(ONE, ("ask", "drain", "settle", "cycle", "throttle"), (Lane.INTERACTIVE,), 0.0, id="throttled"),
        pytest.param(ONE, ("ask", "drain", "settle", "cycle", "throttle"), tuple(Lane), 0.0, id="lanes"),
        pytest.param(TWO, ("ask", "drain", "settle", "cycle", "throttle"), tuple(Lane), 0.0, id="resources"),
    ],
)
def test_no_more_is_sent_than_the_bucket_and_the_rate_allow(
    search: Search, quota: Quota, kinds: tuple[str, ...], lanes: tuple[Lane, ...], promised_s: float
) -> None:
    def is_bounded(run: Run) -> None:
        assert run.excess() <= promised_s * 1000 + ROUNDING

    search.prove(quota, steps_of(kinds, lanes), is_bounded)


@pytest.mark.parametrize("quota", [ONE, TWO], ids=["one", "two"])
def test_calls_are_sent_in_the_order_in_which_they_asked(search: Search, quota: Quota) -> None:
    def is_in_order(run: Run) -> None:
        assert all(earlier.send_at <= later.send_at for earlier, later in pairwise(run.calls))

    search.prove(quota, steps_of(("ask", "drain"), (Lane.INTERACTIVE,)), is_in_order)


@pytest.mark.parametrize("lanes", [(Lane.INTERACTIVE,), (Lane.BATCH,)], ids=["interactive", "batch"])
def test_who_comes_back_after_the_wait_finds_what_it_asked_for(search: Search, lanes: tuple[Lane, ...]) -> None:
    def is_there(run: Run) -> None:
        for units in (700, 4000, 9000):
            refused = run.pool.ask(units, lane=lanes[0], tenant="late")
            if isinstance(refused, Limited) and refused.resource != "concurrency":
                run.pool.pass_ms(refused.wait_s * 1000)
                granted = run.pool.ask(units, lane=lanes[0], tenant="late")
                assert granted.resource == "concurrency" if isinstance(granted, Limited) else granted.wait_s <= 0.001

    search.prove(ONE, steps_of(("ask", "drain", "settle", "cycle"), lanes), is_there)


@pytest.mark.parametrize("quota", [Quota(name="windows", rpm=600, windows_s={Resource.REQUESTS: 10})])
def test_no_window_of_the_provider_gets_more_than_it_allows_wherever_it_begins(pool: Pool) -> None:
    pool.checked = False
    sent = []
    pool.fill()
    for _ in range(100):
        while isinstance(grant := pool.ask(1), Grant):
            pool.settle(grant)
            sent.append(pool.now_ms + grant.wait_s * 1000)
        pool.pass_ms(250)
    assert max(sum(start <= at < start + 10_000 for at in sent) for start in sent) == 99


def excess_of(sent: list[tuple[float, float]]) -> float:
    run = Run.__new__(Run)
    run.sent, run.largest = sent, int(max(units for _, units in sent))
    return run.excess()


@pytest.mark.parametrize("quota", [Quota(name="both", rpm=600, tpm=60_000)])
def test_who_waits_for_one_resource_does_not_let_another_fill_meanwhile(pool: Pool) -> None:
    requests, tokens = Resource.REQUESTS, Resource.TOKENS
    pool.fill()
    for _ in range(50):
        pool.take({requests: 1, tokens: 0})
    pool.take({requests: 9, tokens: 0}, wait_s=0.9)
    pool.take({requests: 1, tokens: 5000}, wait_s=1.0)
    pool.pass_ms(1_000)
    grant = pool.ask({requests: 1, tokens: 1000})
    assert excess_of([(START_MS, 5000), (START_MS + grant.wait_s * 1000, 1000)]) <= ROUNDING


def test_who_waits_for_the_end_of_a_freeze_does_not_let_the_bucket_fill_meanwhile(pool: Pool) -> None:
    pool.fill()
    pool.throttle(pool.take(), 8.0)
    pool.pass_ms(7_000)
    pool.take(4750, wait_s=1.0)
    pool.pass_ms(1_000)
    grant = pool.ask(950)
    assert 950 * grant.wait_s + ROUNDING >= 950


def test_what_comes_back_while_a_call_waits_does_not_overfill_the_bucket(pool: Pool) -> None:
    pool.fill()
    returning = pool.take(5000)
    pool.pass_ms(4_000)
    pool.take(4300, wait_s=0.3)
    pool.settle(returning, 0)
    grant = pool.ask(4700)
    assert excess_of([(START_MS + grant.wait_s * 1000, 4700), (START_MS + 300, 4300)]) <= ROUNDING


def test_batch_larger_than_what_can_be_kept_for_it_does_not_overdraw_the_bucket(pool: Pool) -> None:
    pool.keep_for_batch()
    pool.take(1000)
    grant = pool.ask(5000, lane=Lane.BATCH)
    assert excess_of([(START_MS, 1000), (START_MS + grant.wait_s * 1000, 5000)]) <= ROUNDING


def test_a_call_that_is_given_back_before_it_is_sent_leaves_its_place_in_the_bucket(pool: Pool) -> None:
    pool.fill()
    sent = pool.take(4300)
    unsent = pool.take(1000, wait_s=0.3)
    pool.settle(unsent, 0)
    pool.settle(sent, 0)
    assert pool.level() == BUCKET
