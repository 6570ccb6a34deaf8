"""No sequence of calls, results, repeats, waits and losses takes a breaker anywhere but where a small model goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from penstock.gates.breaker import BreakerSettings, BreakerState, BreakerStatus, Refused, Ticket
from tests.gates.breaker_rig import START_MS, Rig
from workers.embedded import EmbeddedServices

SETTINGS = BreakerSettings(
    consecutive_failures=3, failure_ratio=0.5, minimum_calls=4, window_s=10, cool_down_s=1, longest_cool_down_s=3
)
SLICE_MS = 1_000
COOL_DOWNS_MS = [1_000, 2_000, 3_000]
LOOK_AGAIN_MS = 1000
PROBE_MS = 2_000
FACTORS = {0.0: 0.8, 0.5: 1.0, 0.75: 1.1}

epochs = count()


@dataclass
class Model:
    """What a breaker should be: it keeps every call, and fences by numbers of its own."""

    now_ms: int = START_MS
    state: BreakerState = BreakerState.CLOSED
    epoch: int = field(default_factory=lambda: next(epochs))
    until_ms: int = 0
    openings: int = 0
    row: int = 0
    calls: list[tuple[int, bool]] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)
    changed_by: str | None = None

    @property
    def wait_ms(self) -> int:
        return max(0, self.until_ms - self.now_ms)

    def status(self) -> BreakerStatus:
        cooled = self.state is BreakerState.OPEN and not self.wait_ms
        inside = [bad for at_ms, bad in self.calls if at_ms // SLICE_MS > self.now_ms // SLICE_MS - 10]
        return BreakerStatus(
            BreakerState.HALF_OPEN if cooled else self.state,
            self.wait_ms / 1000,
            self.row,
            len(inside),
            sum(inside),
            self.openings,
        )

    def admit(self) -> Refused | bool:
        """Refuse, or tell whether the call is a probe."""
        if self.state is BreakerState.CLOSED:
            return False
        if self.wait_ms:
            is_open = self.state is BreakerState.OPEN
            return Refused((self.wait_ms if is_open else min(self.wait_ms, LOOK_AGAIN_MS)) / 1000)
        self.enter(BreakerState.HALF_OPEN, PROBE_MS)
        return True

    def enter(self, state: BreakerState, wait_ms: int) -> None:
        self.state = state
        self.epoch = next(epochs)
        self.until_ms = self.now_ms + wait_ms

    def report(self, ticket: str, epoch: int, *, bad: bool, factor: float) -> bool:
        if epoch == self.epoch and ticket not in self.reported:
            self.reported.add(ticket)
            self.calls.append((self.now_ms, bad))
            self.row = self.row + 1 if bad else 0
            probing = self.state is BreakerState.HALF_OPEN
            if bad and (probing or self.is_ill()):
                self.enter(BreakerState.OPEN, round(COOL_DOWNS_MS[min(self.openings, 2)] * factor))
                self.openings += 1
                self.changed_by = ticket
            elif not bad and probing:
                self.enter(BreakerState.CLOSED, 0)
                self.calls, self.openings = [], 0
                self.changed_by = ticket
        return self.changed_by == ticket

    def is_ill(self) -> bool:
        seen = self.status()
        return self.row == 3 or (seen.calls >= 4 and 2 * seen.failures >= seen.calls)

    def abandon(self, epoch: int) -> None:
        if epoch == self.epoch and self.state is BreakerState.HALF_OPEN:
            self.enter(BreakerState.HALF_OPEN, 0)


class BreakerLife(RuleBasedStateMachine):
    """A breaker and its model: the same calls at the same times."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.rig = Rig(socket, SETTINGS)
        self.rig.redis.flushall()
        self.model = Model()
        self.tickets: list[tuple[Ticket, int]] = []

    def teardown(self) -> None:
        self.rig.close()

    def wait(self, wait_ms: int) -> None:
        self.model.now_ms += wait_ms
        self.rig.clock.now_ms += wait_ms

    @rule()
    def admit(self) -> None:
        answer = self.rig.ask(probe_s=PROBE_MS / 1000)
        expected = self.model.admit()
        assert (answer.is_probe if isinstance(answer, Ticket) else answer) == expected
        if isinstance(answer, Ticket):
            self.tickets.append((answer, self.model.epoch))

    @precondition(lambda self: self.tickets)
    @rule(ago=st.integers(0, 2), bad=st.booleans(), jitter=st.sampled_from(sorted(FACTORS)))
    def report(self, ago: int, jitter: float, *, bad: bool) -> None:
        ticket, epoch = self.tickets[-1 - ago % len(self.tickets)]
        self.rig.jitter = jitter
        changed = self.rig.fail(ticket) if bad else self.rig.succeed(ticket)
        assert changed == self.model.report(ticket.id, epoch, bad=bad, factor=FACTORS[jitter])

    @rule(verdicts=st.lists(st.booleans(), min_size=1, max_size=4))
    def call(self, verdicts: Sequence[bool]) -> None:
        for bad in verdicts:
            self.admit()
            if self.tickets:
                self.report(0, 0.5, bad=bad)

    @rule(
        verdicts=st.sampled_from([(True, True, True), (False, True, False, True)]),
        longer_ms=st.sampled_from([0, 10_000]),
    )
    def fall_ill_and_cool_down(self, verdicts: tuple[bool, ...], longer_ms: int) -> None:
        """Open by failures in a row, or by their share; and wait, perhaps until the window has forgotten it."""
        self.call(verdicts)
        self.wait(self.model.wait_ms + longer_ms)

    @precondition(lambda self: self.tickets)
    @rule(ago=st.integers(0, 2))
    def abandon(self, ago: int) -> None:
        ticket, epoch = self.tickets[-1 - ago % len(self.tickets)]
        self.rig.abandon(ticket)
        self.model.abandon(epoch)

    @precondition(lambda self: self.model.state is not BreakerState.CLOSED)
    @rule(gives_back=st.booleans(), verdict=st.sampled_from([True, False, None]))
    def follow_a_probe(self, *, gives_back: bool, verdict: bool | None) -> None:
        """Probe after one that was abandoned or died, and let that one report late; None abandons it."""
        self.wait(self.model.wait_ms)
        self.admit()
        if gives_back:
            self.abandon(0)
        else:
            self.wait(PROBE_MS)
        self.admit()
        if verdict is None:
            self.abandon(1)
        else:
            self.report(1, 0.5, bad=verdict)

    @rule(wait_ms=st.sampled_from([1, 499, 1_000, 3_000, 10_000]))
    def pass_time(self, wait_ms: int) -> None:
        self.wait(wait_ms)

    @precondition(lambda self: self.model.wait_ms)
    @rule(early_ms=st.integers(0, 1))
    def wait_for_the_end(self, early_ms: int) -> None:
        self.wait(self.model.wait_ms - early_ms)

    @rule()
    def lose_redis(self) -> None:
        self.rig.redis.flushall()
        self.wait(1_000)
        self.model = Model(now_ms=self.model.now_ms)

    @invariant()
    def stands_where_the_model_stands(self) -> None:
        assert self.rig.status() == self.model.status()


def test_no_sequence_of_steps_leaves_the_model(broker: redis.Redis, services: EmbeddedServices) -> None:
    run_state_machine_as_test(
        lambda: BreakerLife(services.redis.socket_path),  # type: ignore[arg-type] # any maker of one will do
        settings=settings(max_examples=60, stateful_step_count=25, deadline=None),
    )
