"""`python -m penstock.prompts check` and `lock`, for CI and authors. It must not change a file other than the lock."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.errors import ConfigurationError
from penstock.prompts.library import PromptLibrary
from penstock.prompts.lock import add_new, differences, read_lock


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; give the exit status, 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m penstock.prompts", description="Check or lock the prompt files.")
    parser.add_argument("command", choices=["check", "lock"])
    parser.add_argument("--root", type=Path, default=Path("prompts"), help="the directory of prompts")
    parser.add_argument("--lock", type=Path, default=Path("prompts.lock"), help="the lock file")
    options = parser.parse_args(arguments)
    try:
        library = PromptLibrary.load(options.root)
        return _check(library, options.lock) if options.command == "check" else _lock(library, options.lock)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _check(library: PromptLibrary, lock: Path) -> int:
    found = [prompt.reference for prompt in library]
    problems = differences(read_lock(lock), found)
    for place, reason, cure in problems:
        sys.stderr.write(f"{lock}, {place}: {reason}; {cure}\n")
    if not problems:
        sys.stdout.write(f"{len(found)} prompt versions are as locked\n")
    return 1 if problems else 0


def _lock(library: PromptLibrary, lock: Path) -> int:
    added = add_new(lock, [prompt.reference for prompt in library])
    for reference in added:
        sys.stdout.write(f"locked {reference.id} {reference.version} {reference.digest}\n")
    if not added:
        sys.stdout.write("nothing new to lock\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
