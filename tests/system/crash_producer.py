"""A producer that submits one job and says its id: `python -m tests.system.crash_producer TIER KEY`."""

import sys

from penstock.client import Client
from tests.system.crash_rig import DOCUMENT, tenant


def main() -> None:
    tier, key = sys.argv[1:]
    with Client() as client:
        fields = {"tenant": tenant(tier), "prompt": "bench_summary", "tier": tier, "document": DOCUMENT}
        print(client.submit(**fields, idempotency_key=key))


if __name__ == "__main__":
    main()
