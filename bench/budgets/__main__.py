"""`python -m bench budgets [--short] [--json]`. It must not know a figure."""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.budgets import flow, race
from bench.report import Report
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from workers.embedded import PostgresServer


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench budgets", description=__doc__)
    parser.add_argument("--short", action="store_true", help="some seconds of each, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    report = Report("budgets", "sqlalchemy", "psycopg")
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        engine = sync_engine(server.url.replace("postgresql://", "postgresql+psycopg://", 1))
        try:
            migrate(engine)
            flow.measure(report, engine, flow.SHORT if given.short else flow.FULL)
            race.measure(report, engine, seconds=8 if given.short else 60)
        finally:
            engine.dispose()
            server.stop()
    return report.finish(as_json=given.json, short=given.short)


if __name__ == "__main__":
    sys.exit(main())
