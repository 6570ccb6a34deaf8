"""`make bench NAME=limits`, or `python -m bench limits [--short] [--json] [--only NAME]`. It must not know a figure.

All of it takes about half an hour, in real time where real processes are measured, in virtual time where the limiter
alone is. `--short` takes a minute. With `--short` or `--only` no result file is written.
"""

import argparse
import signal
import sys
from dataclasses import dataclass, replace
from types import FrameType

from bench.limits import celery_peer, cookbook, cost, measures, ours, outage, scenarios
from bench.limits.figures import Run
from bench.limits.load import EVEN, WEIGHTED, Load
from bench.limits.places import tell
from bench.limits.plan import Plan
from bench.limits.scenarios import Lengths, TooHigh
from bench.limits.semantics import CONTINUOUS, SPLIT, WINDOWS
from bench.report import Report

INTERRUPTED = 130
TOO_HIGH = 1.25
OVERLOAD = Load(interactive_per_s=5.7, interactive_tokens=3000)
"""1.3 times what the quota gives, in calls of 3,060 tokens."""


@dataclass(frozen=True)
class Durations:
    """How long everything is measured, in seconds; `plans` are the runs under the whole load."""

    plans: tuple[Plan, ...]
    peer_warm_up_s: float
    peer_measured_s: float
    lengths: Lengths
    pairs: int
    is_short: bool = False


FULL = Durations(
    plans=(
        Plan(CONTINUOUS, warm_up_s=30, measured_s=300),
        Plan(WINDOWS, warm_up_s=30, measured_s=120),
        Plan(SPLIT, warm_up_s=30, measured_s=120, load=WEIGHTED),
    ),
    peer_warm_up_s=30,
    peer_measured_s=60,
    lengths=scenarios.LONG,
    pairs=2000,
)
SHORT = Durations(
    plans=(Plan(CONTINUOUS, warm_up_s=3, measured_s=8, after_s=1),),
    peer_warm_up_s=1,
    peer_measured_s=4,
    lengths=scenarios.SHORT,
    pairs=200,
    is_short=True,
)


def measure_limiter(report: Report, durations: Durations) -> None:
    """Measure the limiter's own cost; first, while nothing else runs."""
    measures.add_cost(report, cost.measure(durations.pairs))


def measure_use(report: Report, durations: Durations) -> None:
    """Measure the whole load at each kind of provider, ours and the peers."""
    for plan in durations.plans:
        briefly = replace(plan, warm_up_s=durations.peer_warm_up_s, measured_s=durations.peer_measured_s)
        made = _told("penstock", ours.run(plan))
        peers = {
            "celery": _told("celery", celery_peer.run(briefly)),
            "cookbook": _told("cookbook", cookbook.run(briefly)),
        }
        runs = measures.Compared(made, peers, durations.is_short)
        measures.add_use(report, runs)
        shares = "equal" if plan.load is EVEN else "weighted"
        measures.add_fairness(report, shares, runs, plan.load.weights)
    report.note(
        f"Penstock is measured for {', '.join(f'{plan.measured_s:g}' for plan in durations.plans)} s, a peer for "
        f"{durations.peer_measured_s:g} s at each kind of provider; an interactive job of a peer that never came "
        "counts with the time that it had waited."
    )


def measure_too_high(report: Report, durations: Durations) -> None:
    """Measure limits that are configured a quarter too high."""
    for headers in (False, True):
        name = f"25_too_high.{_heard(headers)}.virtual"
        measures.add_too_high(report, name, scenarios.too_high(durations.lengths, TOO_HIGH, headers=headers))
    if not durations.is_short:
        deaf = replace(CONTINUOUS, name="25 % too high, no headers", headers=False)
        made = _told("penstock", ours.run(Plan(deaf, warm_up_s=30, measured_s=120, configured=TOO_HIGH)))
        measures.add_too_high(report, "25_too_high.no_headers", _too_high(made))


def measure_halved(report: Report, durations: Durations) -> None:
    """Measure limits that are halved in the middle."""
    for headers in (False, True):
        outcome = scenarios.halved(durations.lengths, headers=headers)
        measures.add_halved(report, f"halved.{_heard(headers)}.virtual", outcome)


def measure_overload(report: Report, durations: Durations) -> None:
    """Measure what is left to the batch when interactive jobs alone are more than the quota."""
    share = scenarios.batch_share(durations.lengths)
    measures.add_batch_share(report, "overload.virtual", share)
    if not durations.is_short:
        plan = Plan(replace(CONTINUOUS, name="interactive overload"), warm_up_s=30, measured_s=120, load=OVERLOAD)
        made = _told("penstock", ours.run(plan))
        measures.add_batch_share(report, "overload", made.batch_share())
        report.add("quota_used.overload", measures.rounded(made.quota_used()), "share")


def measure_down(report: Report, durations: Durations) -> None:
    """Measure what a provider gets that is down."""
    if not durations.is_short:
        outage_s = 40.0
        measures.add_outage(report, outage.measure(outage.plan_of(20, outage_s, 30), outage_s))


PARTS = {
    "limiter": measure_limiter,
    "use": measure_use,
    "too_high": measure_too_high,
    "halved": measure_halved,
    "overload": measure_overload,
    "down": measure_down,
}


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench limits", description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer seconds, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    report = Report("limits", "celery", "kombu", "litellm", "redis", "aiohttp", "httpx")
    durations = SHORT if arguments.short else FULL
    try:
        for name, measure in PARTS.items():
            if arguments.only in {None, name}:
                measure(report, durations)
    except KeyboardInterrupt:
        return INTERRUPTED
    return report.finish(as_json=arguments.json, short=arguments.short or arguments.only is not None)


def _told(whose: str, run: Run) -> Run:
    tell(f"{whose}: {run.quota_used():.4f} of the quota used, {run.refused_per_100():.2f} refused per 100")
    tell(f"{whose}: tokens {dict(run.tokens_by_tenant())}")
    return run


def _too_high(made: Run) -> TooHigh:
    return TooHigh(made.refused_per_100(), made.quota_used())


def _heard(headers: object) -> str:
    return "headers" if headers else "no_headers"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
