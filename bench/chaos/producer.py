"""A producer: submits its jobs, each under its key, and writes down what was accepted. It must not know what happens.

`python -m bench.chaos.producer NAME JOBS JOBS_PER_S FILE`. Whatever it is not sure of it submits again. Killed and
started anew, it goes on behind the last line that it wrote.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from bench.chaos.texts import Ask
from penstock.client import Client

LARGEST_BATCH = 8
PAUSE_S = 0.2


class Journal:
    """What was accepted, on the disk before anything else happens."""

    def __init__(self, path: Path) -> None:
        """Open it, and find where an earlier run of this producer stopped; half a line counts for nothing."""
        self._file = path.open("a")
        self.accepted = len(read(path))
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def write(self, asks: Sequence[Ask], ids: Sequence[UUID]) -> None:
        """Add a line for each job."""
        for ask, job_id in zip(asks, ids, strict=True):
            self._file.write(json.dumps({"key": ask.key, "tenant": ask.tenant, "id": str(job_id)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.accepted += len(asks)


def read(path: Path) -> list[dict[str, str]]:
    """Read a journal, without a last line that was not finished."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def main() -> None:
    """Submit everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("jobs", type=int)
    parser.add_argument("jobs_per_s", type=float)
    parser.add_argument("journal", type=Path)
    given = parser.parse_args()
    journal = Journal(given.journal)
    first, begun_s = journal.accepted, time.monotonic()
    with Client() as client:
        while journal.accepted < given.jobs:
            size = min(random.randint(1, LARGEST_BATCH), given.jobs - journal.accepted)
            asks = [Ask(given.name, journal.accepted + n) for n in range(size)]
            journal.write(asks, accept(client, asks))
            due_s = begun_s + (journal.accepted - first) / given.jobs_per_s
            time.sleep(max(0.0, due_s - time.monotonic()))


def accept(client: Client, asks: Sequence[Ask]) -> list[UUID]:
    """Submit until it is known that it was accepted."""
    while True:
        try:
            return client.submit_many([ask.fields() for ask in asks])
        except DBAPIError:
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
