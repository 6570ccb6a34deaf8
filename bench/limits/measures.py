"""Which figure has to be how good, and what the peers reached. It must not know how a run is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.limits.cost import median_ms
from bench.limits.figures import Run, percentile
from bench.limits.outage import Outage
from bench.limits.scenarios import Halved, TooHigh
from bench.report import Report

Figure = Callable[[Run], float]

LEAST_USED = {"continuous": 0.97, "windows": 0.95, "split": 0.97}
MOST_REFUSED = 0.5
MOST_REFUSED_TOO_HIGH = 1.5
MOST_REFUSED_HALVED = 2
LEAST_USED_HALVED = 0.9
LONGEST_WAIT_S = {95: 1, 99: 3}
LEAST_JAIN = 0.99
LEAST_IN_SECONDS = 0.9
"""What is left of these two bounds in a window of seconds, at the edges of which the largest calls weigh much."""
LEAST_BATCH = 0.1
LONGEST_PAIR_MS = 1


@dataclass(frozen=True)
class Compared:
    """A run of ours, and those of the peers under the same load; `is_short` says that it lasts for seconds."""

    ours: Run
    peers: Mapping[str, Run]
    is_short: bool = False

    def add(self, report: Report, name: str, unit: str, figure: Figure, *, must: str) -> None:
        """Write one figure of each."""
        beside = {peer: rounded(figure(made)) for peer, made in self.peers.items()}
        report.add(name, rounded(figure(self.ours)), unit, must=must, beside=beside)

    def least(self, share: float) -> str:
        """Give the bound of a share for a window of this length."""
        return f">= {LEAST_IN_SECONDS if self.is_short else share}"


def add_use(report: Report, runs: Compared) -> None:
    """Write how the quota was used under the whole load, and how interactive jobs fared."""
    name = runs.ours.semantics.name
    runs.add(report, f"quota_used.{name}", "share", Run.quota_used, must=runs.least(LEAST_USED[name]))
    runs.add(report, f"refused_429.{name}", "per 100", Run.refused_per_100, must=f"<= {MOST_REFUSED}")
    for percent, longest_s in LONGEST_WAIT_S.items():
        runs.add(report, f"interactive_wait_p{percent}.{name}", "s", wait_s(percent), must=f"<= {longest_s}")
    runs.add(report, f"jobs_failed.{name}", "jobs", lambda run: run.failed, must="== 0")


def add_fairness(report: Report, shares: str, runs: Compared, weights: Mapping[str, float]) -> None:
    """Write how evenly tenants were served by tokens, for their weight."""
    name = f"jain.{runs.ours.semantics.name}.{shares}"
    runs.add(report, name, "index", lambda run: run.jain(weights), must=runs.least(LEAST_JAIN))


def add_too_high(report: Report, name: str, outcome: TooHigh) -> None:
    """Write what became of limits that were configured too high."""
    report.add(f"refused_429.{name}", rounded(outcome.refused_per_100), "per 100", must=f"<= {MOST_REFUSED_TOO_HIGH}")
    report.add(f"quota_used.{name}", rounded(outcome.used), "share")


def add_halved(report: Report, name: str, outcome: Halved) -> None:
    """Write what became of limits that the provider halved."""
    report.add(f"refused_429.{name}", rounded(outcome.refused_per_100), "per 100", must=f"<= {MOST_REFUSED_HALVED}")
    report.add(f"quota_used.{name}", rounded(outcome.used), "share", must=f">= {LEAST_USED_HALVED}")


def add_batch_share(report: Report, name: str, share: float) -> None:
    """Write what the batch got beside an interactive overload."""
    report.add(f"batch_share.{name}", rounded(share), "share", must=f">= {LEAST_BATCH}")


def add_outage(report: Report, outage: Outage) -> None:
    """Write what a provider got that was down."""
    report.add("provider_down.calls_until_trip", outage.before_trip, "calls")
    report.add("provider_down.calls_after_trip", outage.after_trip, "calls", must=f"<= {outage.bound}")
    report.add("provider_down.probes", outage.probes, "calls")
    report.add("provider_down.calls_an_interval", outage.most_an_interval, "calls", must="<= 1")
    report.add("provider_down.back_after", rounded(outage.back_after_s), "s")
    report.add("provider_down.jobs_failed", outage.failed, "jobs", must="== 0")


def add_cost(report: Report, times_ms: Mapping[int, list[float]]) -> None:
    """Write what one acquire and one settle take together."""
    for tokens, pairs_ms in times_ms.items():
        name = f"limiter_p50.{tokens}_tokens"
        report.add(name, rounded(median_ms(pairs_ms)), "ms", must=f"< {LONGEST_PAIR_MS}")


def wait_s(percent: int) -> Figure:
    """Give the figure that is so many per cent of the waits of interactive jobs."""
    return lambda run: percentile(run.waits_s(), percent / 100)


def rounded(value: float) -> float:
    """Keep four decimals."""
    return round(value, 4)
