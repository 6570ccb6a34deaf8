"""`python -m bench batch [--short] [--json]`. It must not know how a figure comes about.

All of it takes about six minutes; `--short` takes one.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from bench.batch.night import QUIET_S, Night, run
from bench.batch.plan import FULL, SHORT
from bench.report import Report
from penstock.schemas import JobState

BURST_S = 5.0
"""What a quota may take at once, of its rate: the default of `burst_s`."""
MEBIBYTE = 2**20
LONGEST_WAIT_S = 2.0
"""What the limits benchmark allows."""


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench batch", description=__doc__)
    parser.add_argument("--short", action="store_true", help="some hundred documents, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    plan = SHORT if given.short else FULL
    report = Report("batch", "celery", "kombu", "redis", "sqlalchemy", "psycopg")
    with tempfile.TemporaryDirectory(prefix="batch-", ignore_cleanup_errors=True) as home:
        add(report, run(plan, Path(home)), is_short=given.short)
    return report.finish(as_json=given.json, short=given.short)


def add(report: Report, made: Night, *, is_short: bool) -> None:
    """Write the figures down."""
    plan, night, again, capped = made.plan, *(made.progress[name] for name in ("night", "again", "capped"))
    forecast = made.forecast
    assert forecast is not None
    spent = night.settled_nanodollars
    report.add("succeeded", night.jobs.get(JobState.SUCCEEDED, 0), "jobs", must=f"== {plan.jobs}")
    report.add("missing", plan.jobs - made.numbers, "items", must="== 0")
    report.add("refused", night.refused, "items", must=f"== {made.bad}")
    report.add("bought_twice", made.twice, "jobs", must="== 0")
    report.add("killed_loader", made.kills["loader"], "times", must=None if is_short else ">= 2")
    report.add("killed_everything", made.kills["everything"], "times", must=">= 2")
    report.add("unknown_calls", made.unknown_calls, "calls")
    report.add("ledger_below_invoice", made.below_invoice, "n$", must="== 0")
    report.add("ledger_unexplained", made.unexplained, "n$", must="== 0")
    error = abs(forecast.nanodollars.expected / made.answered - 1)
    report.add("forecast_cost_error", error, "of the truth", must=None if is_short else "<= 0.05")
    report.add("spent_on_killed_calls", spent / made.answered - 1, "of the answered")
    report.add("forecast_jobs", forecast.jobs / plan.jobs, "of the truth")
    report.note("The forecast's cost stands beside that of the answered calls: kills cost their upper bound on top.")
    report.add("forecast_time", forecast.seconds / made.seconds["night"], "of the truth")
    report.add("night", made.seconds["night"], "s")
    if made.rates:
        quota = plan.rpm / 60
        report.add("quota_used", fmean(made.rates) / quota, "share", must=None if is_short else ">= 0.95")
        most = 1 + BURST_S / QUIET_S
        report.add("quota_used_most", max(made.rates) / quota, "share", must=f"<= {most}")
        report.note(f"Quota is looked at for {QUIET_S:g} s at a time; a bucket holds {BURST_S:g} s of its rate beside.")
    report.add("throttled", made.throttled, "calls", must="== 0")
    report.add("loader_memory", max(made.memory) / MEBIBYTE, "MiB")
    report.add(
        "loader_memory_grown",
        (max(made.memory) - made.memory[len(made.memory) // 4]) / MEBIBYTE,
        "MiB",
        must=None if is_short else "<= 32",
    )
    for percent in (50, 99):
        report.add(f"interactive_wait_p{percent}.with_kills", _percentile(made.waits_s, percent), "s")
    if made.waits_undisturbed_s:
        bound = f"<= {LONGEST_WAIT_S}"
        report.add("interactive_wait_p99", _percentile(made.waits_undisturbed_s, 99), "s", must=bound)
    report.add("interactive_asked", made.asked, "jobs")
    report.add("cap_overspent", max(0, capped.settled_nanodollars - made.cap), "n$", must="== 0")
    report.add("cap_left", (made.cap - capped.settled_nanodollars) / made.cap_bound, "calls", must="< 1")
    report.add("cached_calls", made.cached_calls, "calls", must="== 0")
    report.add("cached_cost", again.settled_nanodollars, "n$", must="== 0")
    report.add("cached_succeeded", again.jobs.get(JobState.SUCCEEDED, 0), "jobs", must=f"== {plan.jobs}")
    report.add("cached_rate", plan.jobs / made.seconds["again"], "1/s")


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100] if values else float("inf")


if __name__ == "__main__":
    sys.exit(main())
