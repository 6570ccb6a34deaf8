"""Processes that are started anew whenever they end, as a service manager does. It must not know what they do."""

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

LOOK_S = 0.05
REST_S = 0.5
"""How long a process stays away before it is started anew."""
KILLED = -signal.SIGKILL


@dataclass
class Kept:
    """A process that is kept alive; `ends` says that it may end well, and is left alone then."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    ends: bool = False
    is_frozen: bool = False
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int:
        """Give the id of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Tell whether it lives and is not frozen."""
        return self._process is not None and self._process.poll() is None and not self.is_frozen

    @property
    def has_ended(self) -> bool:
        """Tell whether it came to the end that it may come to."""
        return self.ends and self._process is not None and self._process.poll() == 0

    def start(self) -> None:
        """Start it; what it says is appended to its log."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.starts += 1
        self.is_frozen = False

    def exit_code(self) -> int | None:
        """Give how it ended, None while it runs."""
        return self._process.poll() if self._process is not None else None

    def kill(self) -> int:
        """Kill it with -9 and give the id that it had."""
        assert self._process is not None
        with self._lock:
            self._process.kill()
            self._process.wait()
            return self._process.pid

    def freeze(self) -> None:
        """Stop it where it stands."""
        assert self._process is not None
        with self._lock:
            self.is_frozen = True
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, if it is still the one that was frozen."""
        assert self._process is not None
        with self._lock:
            if self.is_frozen:
                self._process.send_signal(signal.SIGCONT)
                self.is_frozen = False

    def revive(self) -> int | None:
        """Start it anew if it has ended; give its exit code then."""
        with self._lock:
            code = self.exit_code()
            if code is None or self.has_ended:
                return None
            self.start()
            return code


class Fleet:
    """The processes of a run, each kept alive until the block ends, and killed then."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        """Start nothing yet."""
        self.exits: Counter[str] = Counter()
        self._environment = environment
        self._logs = logs
        self._kept: list[Kept] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fleet", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        """Kill everything."""
        self._stopping.set()
        self._thread.join()
        for kept in self._kept:
            kept.kill()

    def keep(self, name: str, *arguments: str, ends: bool = False) -> Kept:
        """Start `python ARGUMENTS` and keep it alive."""
        kept = Kept(name, arguments, self._environment, self._logs / f"{name}.log", ends)
        kept.start()
        self._kept.append(kept)
        return kept

    def count_in_logs(self, word: str) -> int:
        """Count the lines of all logs in which a word stands."""
        return sum(
            line.count(word) > 0 for kept in self._kept for line in kept.log.read_text(errors="replace").splitlines()
        )

    def _watch(self) -> None:
        dead_for: Counter[str] = Counter()
        while not self._stopping.wait(LOOK_S):
            for kept in list(self._kept):
                if kept.exit_code() is None or kept.has_ended:
                    continue
                dead_for[kept.name] += 1
                if dead_for[kept.name] * LOOK_S < REST_S:
                    continue
                dead_for[kept.name] = 0
                code = kept.revive()
                if code not in {None, KILLED}:
                    self.exits[f"{kept.name} with {code}"] += 1
