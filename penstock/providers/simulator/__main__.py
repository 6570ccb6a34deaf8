"""The simulator's own command line. It must not know anything but its arguments."""

import argparse
import contextlib
import sys
from importlib import import_module
from pathlib import Path
from threading import Thread

from penstock.errors import ConfigurationError
from penstock.providers.simulator.config import load_config
from penstock.providers.simulator.server import serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; give 2 when the configuration or the address cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m penstock.providers.simulator")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8091, help="0 chooses a free one")
    parser.add_argument("--config", type=Path, default=Path("config/simulator.toml"))
    given = parser.parse_args(arguments)
    # Loaded meanwhile, so that the first document does not wait for it.
    Thread(target=import_module, args=("penstock.extractive.textrank",), daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            serve(load_config(given.config), given.host, given.port, announce=_announce)
    except (ConfigurationError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _announce(url: str) -> None:
    sys.stdout.write(f"simulator ready at {url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
