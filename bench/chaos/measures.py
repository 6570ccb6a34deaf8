"""Which figure has to be how good. It must not know how a run is made."""

from collections.abc import Callable, Mapping

from bench.chaos.celery_peer import Peer
from bench.chaos.ours import Run, recoveries
from bench.limits.figures import percentile
from bench.report import Report
from penstock.jobs.states import POISON_AFTER
from penstock.reasons import Reason
from penstock.schemas import JobState

Peers = Mapping[str, Peer]


def beside(peers: Peers, figure: Callable[[Peer], float]) -> dict[str, float]:
    """Give a figure of each peer."""
    return {name: figure(peer) for name, peer in peers.items()}


def add(report: Report, made: Run, peers: Peers) -> None:
    """Write everything that one run of Penstock came to, and what plain Celery did beside it."""
    add_jobs(report, made, peers)
    add_money(report, made, peers)
    add_recovery(report, made, peers)
    add_poison(report, made, peers)
    add_course(report, made)


def add_jobs(report: Report, made: Run, peers: Peers) -> None:
    """Write what became of the jobs."""
    assert made.books is not None
    states = {job_id: made.books.jobs.get(job_id) for job_id in made.accepted}
    ended = [row for row in states.values() if row is not None and JobState(row.state).is_terminal]
    report.add("accepted", len(made.accepted), "jobs", beside=beside(peers, lambda peer: len(peer.books.accepted)))
    report.add("terminal", len(ended), "jobs")
    lost = beside(peers, lambda peer: peer.books.lost)
    report.add("lost", len(states) - len(ended), "jobs", must="== 0", beside=lost)
    report.add("rows_that_nobody_asked_for", len(made.books.jobs.keys() - made.accepted), "jobs", must="== 0")
    report.add("succeeded", sum(row.state == JobState.SUCCEEDED for row in ended), "jobs")
    for reason in Reason:
        dead = sum(row.state == JobState.DEAD and row.reason == reason for row in ended)
        if dead:
            report.add(f"dead.{reason}", dead, "jobs")
    several = beside(peers, lambda peer: peer.books.more_than_one_result)
    report.add("results_but_one_a_success", made.books.wrong_results, "jobs", must="== 0", beside=several)
    foreign = beside(peers, lambda peer: peer.books.foreign_results)
    report.add("results_of_another_job", made.books.foreign_results, "jobs", must="== 0", beside=foreign)


def add_money(report: Report, made: Run, peers: Peers) -> None:
    """Write what was paid, and what the books say of it."""
    assert made.books is not None
    late, meanwhile = made.books.bought_twice()
    hidden = made.books.hidden()
    bought = beside(peers, lambda peer: peer.books.bought_twice)
    report.add("bought_twice", late, "answers", must="== 0", beside=bought)
    report.add("bought_beside_a_worker_taken_for_dead", meanwhile, "answers")
    repeated = beside(peers, lambda peer: peer.books.repeated_calls)
    report.add("calls_repeated", made.books.repeated_calls(), "calls", beside=repeated)
    report.add("overspend", made.overspend, "nano-dollars", must="== 0")
    report.add("least_left_of_the_budget", made.budget_left, "nano-dollars")
    report.add("ledger_minus_invoice.calm", made.calm_difference, "nano-dollars", must="== 0")
    report.add("ledger_minus_invoice", made.books.difference, "nano-dollars", must=">= 0")
    for reason, above in sorted(hidden.items()):
        report.add(f"ledger_minus_invoice.{reason}", above, "nano-dollars", must=">= 0")
    report.add("unexplained", made.books.difference - hidden.total(), "nano-dollars", must="== 0")
    report.add("calls_with_another_cost_than_invoiced", made.books.misjudged(), "calls", must="== 0")
    report.add("calls_below_the_invoice", made.books.too_low(), "calls", must="== 0")
    report.add("spending_apart_from_ledger", made.books.unbooked, "nano-dollars", must="== 0")


def add_recovery(report: Report, made: Run, peers: Peers) -> None:
    """Write how long the jobs of killed workers waited."""
    found = recoveries(made)
    report.add("killed_under_way", len(found), "runs", beside=beside(peers, lambda peer: len(peer.waits_s)))
    must = f"<= {made.plan.recovered_within_s:g}"
    add_waits(report, "recovered", [each.wait_s for each in found if not each.interrupted], must=must)
    others = {name: round(percentile(peer.waits_s, 0.95), 2) for name, peer in peers.items() if peer.waits_s}
    add_waits(report, "recovered_with_interruptions", [each.wait_s for each in found], beside=others)
    add_waits(report, "recovered_first_crash", [each.wait_s for each in found if not (each.again or each.interrupted)])
    add_waits(report, "recovered_later_crash", [each.wait_s for each in found if each.again and not each.interrupted])


def add_waits(
    report: Report, name: str, waits_s: list[float], *, must: str | None = None, beside: dict[str, float] | None = None
) -> None:
    """Write the middle and the tail of some waits, and how many there are."""
    if waits_s:
        report.add(f"{name}.runs", len(waits_s), "runs")
        report.add(f"{name}.p50", round(percentile(waits_s, 0.5), 2), "s")
        report.add(f"{name}.p95", round(percentile(waits_s, 0.95), 2), "s", must=must, beside=beside)
        report.add(f"{name}.at_last", round(max(waits_s), 2), "s")


def add_poison(report: Report, made: Run, peers: Peers) -> None:
    """Write what jobs did that kill their worker."""
    assert made.books is not None
    rows = [made.books.jobs[job_id] for job_id in made.notes.poisons]
    if rows:
        executions = [made.books.executions(job_id) for job_id in made.notes.poisons]
        report.add("poison_jobs", len(rows), "jobs")
        report.add("poison_executions_least", min(executions), "runs", must=f"== {POISON_AFTER}")
        endless = beside(peers, lambda peer: peer.poison_executions)
        report.add("poison_executions_most", max(executions), "runs", must=f"== {POISON_AFTER}", beside=endless)
        other = sum((row.state, row.reason) != (JobState.DEAD, Reason.POISON) for row in rows)
        report.add("poison_with_another_end", other, "jobs", must="== 0")


def add_course(report: Report, made: Run) -> None:
    """Write how it went."""
    report.add("jobs_per_s", round(made.ended_in_chaos / made.chaos_s, 1), "1/s")
    report.add("mended_after", round(made.mending_s, 1), "s")
    report.add("replay_rounds", made.rounds, "rounds")
    report.add("looks_at_the_budget", made.looks, "looks")
    report.add("processes_that_ended_by_themselves", made.exits.total(), "times", must="== 0")
    report.add("internal_errors_logged", made.internal_errors, "lines")
    for kind, times in sorted(made.happened.items()):
        report.add(f"event.{kind}", times, "times")
    for which, times in made.exits.items():
        report.note(f"{which}: {times} times by itself")
