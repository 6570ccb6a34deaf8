"""A producer that submits one job and says its id: `python -m tests.system.crash_producer TIER KEY`."""

import sys

from bench.chaos.texts import PROMPT
from penstock.client import Client
from tests.system.crash_rig import DOCUMENT, tenant


def main() -> None:
    tier, key = sys.argv[1:]
    with Client() as client:
        job_id = client.submit(tenant=tenant(tier), prompt=PROMPT, tier=tier, document=DOCUMENT, idempotency_key=key)
    sys.stdout.write(f"{job_id}\n")


if __name__ == "__main__":
    main()
