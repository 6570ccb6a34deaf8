"""`python -m workers demo|up`: what the command `penstock` starts. It must not know what a stack consists of."""

import argparse
import os
import signal
import sys

from rich.console import Console

from penstock.errors import PenstockError
from workers import demo
from workers.stack import Stack

FAILED = 1
INTERRUPTED = 130


def main() -> int:
    """Run the command and give its exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers")
    parser.add_argument("command", choices=["demo", "up"])
    parser.add_argument("--keep", action="store_true", help="stay up after the demonstration")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.command == "demo":
            os.environ.setdefault("PENSTOCK_FLOWER_OPEN", "1")
            demo.run(console, keep=arguments.keep)
        else:
            up(console)
    except PenstockError as error:
        console.print(f"[red]penstock {arguments.command} failed:[/red] {error}", soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    return 0


def up(console: Console) -> None:
    """Run the stack until Ctrl-C."""
    with Stack(tell=console.print) as stack:
        console.print(f"Penstock is up, Flower is at {stack.flower_url}; Ctrl-C stops it")
        console.print("try: penstock submit samples/*.md --tenant acme --wait")
        stack.wait()


if __name__ == "__main__":
    sys.exit(main())
