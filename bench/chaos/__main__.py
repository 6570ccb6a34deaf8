"""`python -m bench chaos [--short] [--jobs N] [--seed N] [--json] [--only NAME] [--keep]`. It must not know a figure.

All of it takes about twenty-five minutes; `--short` takes one, without the peer. With `--short` or `--only` no result
file is written.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bench.chaos import celery_peer, measures, notes, ours
from bench.chaos.plan import full, short
from bench.limits.places import tell
from bench.report import Report

INTERRUPTED = 130
PEERS = {"celery": False, "celery_flushed": True}
"""Whether Redis is emptied, too, in which run of plain Celery."""
JOBS = {False: 20_000, True: 400}
SEED = 1


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench chaos", description=__doc__)
    parser.add_argument("--short", action="store_true", help="some hundred jobs, for CI")
    parser.add_argument("--jobs", type=int, help="how many are submitted while things break")
    parser.add_argument("--seed", type=int, default=SEED, help="which things break, and when")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", choices=["ours", "celery"], help="one side alone")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the data")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    plan = (short if given.short else full)(given.jobs or JOBS[given.short], given.seed)
    report = Report("chaos", "celery", "kombu", "redis", "sqlalchemy", "aiohttp")
    try:
        with _home(keep=given.keep) as home:
            made = None if given.only == "celery" else ours.run(plan, home / "penstock")
            peers = {}
            if given.only == "celery" or not (given.short or given.only):
                for name, flushes in PEERS.items():
                    peers[name] = celery_peer.run(plan, home / name, flushes=flushes)
        if made is not None:
            measures.add(report, made, peers)
        notes.add(report, plan, peers)
    except KeyboardInterrupt:
        return INTERRUPTED
    return report.finish(as_json=given.json, short=given.short or given.only is not None)


@contextmanager
def _home(*, keep: bool) -> Generator[Path, None, None]:
    """Give a folder with a name short enough for the address of a socket."""
    if keep:
        folder = tempfile.mkdtemp(prefix="chaos-")
        tell(f"logs and data stay in {folder}")
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
