"""Parses one hostile document, in a process of its own that may die. It must not know who started it.

    python -m penstock.documents.child FORMAT LIMITS_AS_JSON < document > answer

The answer is one JSON object: `{"text": ...}`, or `{"fault": ..., "detail": ...}`.
"""

import importlib
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from penstock.documents.faults import Fault, FaultError
from penstock.documents.formats import Format
from penstock.documents.limits import Limits

Parser = Callable[[bytes, Limits], str]

_PARSERS = "penstock.documents.parsers"
_MODULES = {
    Format.TEXT: "plain",
    Format.MARKDOWN: "plain",
    Format.HTML: "html",
    Format.PDF: "pdf",
    Format.DOCX: "docx",
}


def main() -> None:
    """Parse standard input and print the answer."""
    format_, limits = Format(sys.argv[1]), Limits(**json.loads(sys.argv[2]))
    try:
        answer: dict[str, Any] = {"text": _parse(format_, limits)}
    except FaultError as error:
        answer = {"fault": error.fault, "detail": error.detail}
    except MemoryError:
        answer = {"fault": Fault.OUT_OF_MEMORY, "detail": 0}
    except Exception:  # noqa: BLE001 - parsers raise anything at all on hostile bytes
        answer = {"fault": Fault.CORRUPT, "detail": 0}
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
    # What a parser left behind is not worth tearing down, and tearing it down may crash or hang.
    os._exit(0)


def _parse(format_: Format, limits: Limits) -> str:
    # Imported before the limits are set: the parser's own code does not count.
    parse = cast("Parser", importlib.import_module(f"{_PARSERS}.{_MODULES[format_]}").parse)
    _confine(limits)
    text = parse(sys.stdin.buffer.read(), limits)
    if len(text) > limits.max_characters:
        raise FaultError(Fault.TOO_MANY_CHARACTERS)
    return text


def _confine(limits: Limits) -> None:
    """Bound this process from inside: a bomb meets MemoryError, and an orphan does not spin for ever."""
    _lower(resource.RLIMIT_CPU, math.ceil(limits.timeout_s) + 1)
    _lower(resource.RLIMIT_CORE, 0)
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere than on Linux the address space cannot be limited
        baseline = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, baseline + limits.memory_bytes)


def _lower(limit: int, value: int) -> None:
    """Set a limit that nothing in this process can raise again, unless it is root."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
