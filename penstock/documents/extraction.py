"""Extracts a document's text in a process that may die in our stead. It must not know any document library."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock.documents.faults import Fault, FaultError, refusal
from penstock.documents.formats import Format, format_of
from penstock.documents.limits import DEFAULT_LIMITS, Limits
from penstock.documents.text import normalise

EXTRACTOR_VERSION = "1"
"""Changes whenever the same bytes may give another text, so that whoever caches by text can tell."""

_CHILD = "penstock.documents.child"
_IMPORT_ROOT = Path(__file__).resolve().parents[2]
# The child gets no secret from our environment: only what an interpreter needs to find its libraries.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE")
_BYTES_OF_JSON_A_CHARACTER = 6
_ENVELOPE_BYTES = 1024
_SHOWN_LIMITS = {
    Fault.TOO_MANY_BYTES: "max_bytes",
    Fault.TOO_MANY_UNPACKED_BYTES: "max_unpacked_bytes",
    Fault.TOO_MANY_PAGES: "max_pages",
    Fault.TOO_MANY_CHARACTERS: "max_characters",
    Fault.TIMED_OUT: "timeout_s",
    Fault.OUT_OF_MEMORY: "memory_bytes",
}


def extract_text(data: bytes, media_type: str, *, name: str = "document", limits: Limits = DEFAULT_LIMITS) -> str:
    """Give the normalised text of a document of `media_type`; `name` is what errors call it.

    Blocks for up to `limits.timeout_s` seconds: call it in a thread from a loop. Safe from any thread: nothing is
    forked, the parser runs in a fresh interpreter. Raises InvalidDocumentError, whose message holds no text of the
    document, when it is empty, encrypted, images only, corrupt, cut short, too large in bytes, pages or characters, of
    a media type that we do not read, or takes too much time or memory.
    """
    format_ = format_of(media_type, name)
    try:
        return _extract(data, format_, limits)
    except FaultError as error:
        limit = getattr(limits, _SHOWN_LIMITS[error.fault]) if error.fault in _SHOWN_LIMITS else ""
        raise refusal(error.fault, name, format_=format_, detail=error.detail, limit=limit) from None


def _extract(data: bytes, format_: Format, limits: Limits) -> str:
    if len(data) > limits.max_bytes:
        raise FaultError(Fault.TOO_MANY_BYTES, len(data))
    if not data.strip():
        raise FaultError(Fault.EMPTY)
    text = _decode_plain(data, format_)
    if text is None:
        text = _ask_child(data, format_, limits)
    text = normalise(text)
    if not text:
        raise FaultError(Fault.NO_TEXT)
    if len(text) > limits.max_characters:
        raise FaultError(Fault.TOO_MANY_CHARACTERS)
    return text


def _decode_plain(data: bytes, format_: Format) -> str | None:
    """Decode UTF-8 text here: that is one linear pass of the codec and no parser, and saves starting a process.

    None for everything else. Guessing an encoding is slow on some bytes, so the child does it.
    """
    if format_ not in {Format.TEXT, Format.MARKDOWN} or b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _ask_child(data: bytes, format_: Format, limits: Limits) -> str:
    answer = _read_answer(_run_child(data, format_, limits))
    if "fault" in answer:
        raise FaultError(Fault(answer["fault"]), int(answer["detail"]))
    return str(answer["text"])


def _read_answer(output: bytes) -> dict[str, Any]:
    """Read what the child said; one that a parser crashed, or that was taken over, says nothing that can be read."""
    try:
        answer = json.loads(output)
    except ValueError:
        raise FaultError(Fault.CORRUPT) from None
    if not isinstance(answer, dict):
        raise FaultError(Fault.CORRUPT)
    return answer


def _run_child(data: bytes, format_: Format, limits: Limits) -> bytes:
    """Give the child's output; raises FaultError when the clock or the kernel killed it."""
    command = [sys.executable, "-m", _CHILD, format_, json.dumps(asdict(limits))]
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    bound = limits.max_characters * _BYTES_OF_JSON_A_CHARACTER + _ENVELOPE_BYTES
    started_s = time.monotonic()
    # A file without a name, not a pipe: nobody has to feed it while the answer is read.
    with tempfile.TemporaryFile() as document:
        document.write(data)
        document.seek(0)
        with subprocess.Popen(
            command,
            stdin=document,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_IMPORT_ROOT,
            env=environment,
        ) as child:
            output = _read_within(child, bound, limits.timeout_s)
    if child.returncode in {-signal.SIGKILL, -signal.SIGXCPU}:
        late = time.monotonic() - started_s >= limits.timeout_s or child.returncode == -signal.SIGXCPU
        raise FaultError(Fault.TIMED_OUT if late else Fault.OUT_OF_MEMORY)
    return output


def _read_within(child: subprocess.Popen[bytes], bound: int, timeout_s: float) -> bytes:
    """Read at most `bound` bytes and reap the child, which is killed after `timeout_s` seconds."""
    assert child.stdout is not None
    watchdog = threading.Timer(timeout_s, child.kill)
    watchdog.start()
    try:
        output = child.stdout.read(bound)
        child.stdout.close()  # whatever goes on writing beyond the bound gets a broken pipe
        child.wait()
    finally:
        watchdog.cancel()
        child.kill()
    return output
