"""What a reader of the figures has to know. It must not know a figure of a run but the plan's."""

from collections.abc import Mapping

from bench.chaos.celery_app import VISIBILITY_S
from bench.chaos.celery_peer import Peer
from bench.chaos.plan import Plan
from bench.report import Report

OURS = """
accepted: what producers wrote down after submit had returned, and the poison jobs; lost: those without an end
bought_twice: paid calls of attempts that began after the job's answer was recorded
calls_repeated: all paid calls beyond one a job, also for answers that were lost with their worker or their connection
ledger_minus_invoice: calls whose end a crash, a cut or a timeout hid are held to cost their upper bound; by reason
recovered: from the kill -9 of a worker to the next claim, or the end, of each run under way there; a later kill begins
 a new wait; runs with a kill of Postgres or upkeep within the wait are only in recovered_with_interruptions, with all
recovered_later_crash: of jobs that had lost a worker before; after two crashes they do not share a worker
"""


def add(report: Report, plan: Plan, peers: Mapping[str, Peer]) -> None:
    """Say what was done."""
    pause_s = sum(plan.pause_s) / 2
    report.note(
        f"{plan.pools} pools of {plan.slots} slots, {plan.producers} producers, {plan.jobs_per_s:g} jobs a second, "
        f"lease {plan.lease_s:g} s, seed {plan.seed}, something happens every {pause_s:g} s"
    )
    for sentence in OURS.strip().replace("\n ", " ").splitlines():
        report.note(sentence)
    if peers:
        report.note(
            f"celery: acks_late, task_reject_on_worker_lost, prefetch 1, threads, visibility_timeout {VISIBILITY_S} s, "
            f"unacked_restore_interval 5 s, results in SQLite; {plan.peer_jobs} jobs a run; the same rates "
            f"of kills, freezes and restarts of Redis, no faults of the provider; celery_flushed: FLUSHALL, too; "
            f"poison: executions within {plan.poison_s:g} s, with no end in sight"
        )
    for name, peer in peers.items():
        happened = ", ".join(f"{kind} {times}" for kind, times in sorted(peer.happened.items()))
        report.note(f"{name}: {happened}")
