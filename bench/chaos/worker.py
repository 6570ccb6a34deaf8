"""A worker process of Penstock with the light adapter. It must not know anything else of what is different here.

`python -m bench.chaos.worker TIER`, with the options of `workers.worker`.
"""

import sys
from types import ModuleType

from bench.chaos.light import LightProvider
from workers import worker

ADAPTER = "penstock.providers.litellm"


def main() -> None:
    """Put the light adapter into the place of the real one before the worker imports that, and run."""
    stand_in = ModuleType(ADAPTER)
    stand_in.__dict__["LiteLLMProvider"] = LightProvider
    sys.modules[ADAPTER] = stand_in
    worker.main()


if __name__ == "__main__":
    main()
