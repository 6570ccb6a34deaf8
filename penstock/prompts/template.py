"""Template text with placeholders, filled in one pass, and the fence around untrusted text. It must not know roles.

Only `{{` means something: `{{ name }}` is a placeholder and `{{{{` a literal `{{`. There is no logic.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from penstock.errors import ConfigurationError

_MARK = re.compile(r"(?P<literal>\{\{\{\{)|\{\{ (?P<name>[a-z][a-z0-9_]*) \}\}|(?P<stray>\{\{)")
_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Placeholder:
    """Where a value goes; `line` counts from 1."""

    name: str
    line: int


@dataclass(frozen=True)
class Template:
    """Literal text and placeholders in their order."""

    parts: tuple[str | Placeholder, ...]

    @classmethod
    def parse(cls, text: str, file: str) -> Self:
        """Read a template once; raises ConfigurationError that names the line of a `{{` that opens no placeholder."""
        return cls(tuple(_parts(text, file)))

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Give the placeholders in their order."""
        return tuple(part for part in self.parts if isinstance(part, Placeholder))

    def fill(self, values: Mapping[str, str]) -> str:
        """Put each value in its place. A value is never looked at: what it holds stays text."""
        return "".join(values[part.name] if isinstance(part, Placeholder) else part for part in self.parts)


def fence(name: str, text: str, *, beside: Iterable[str]) -> str:
    """Enclose untrusted text between two tags with a token that occurs neither in the text nor in what stands beside.

    The same name and text get the same token, so a repeated call is the same bytes.
    """
    token = _token(name, text, (text, *beside))
    return f'<{name} fence="{token}">\n{text}\n</{name} fence="{token}">'


def _token(name: str, text: str, taken: tuple[str, ...]) -> str:
    for attempt in itertools.count():
        token = hashlib.sha256(f"{attempt} {name} {text}".encode()).hexdigest()[:_TOKEN_LENGTH]
        if not any(token in other for other in taken):
            return token
    raise AssertionError("unreachable: a finite text lacks some token")


def _parts(text: str, file: str) -> Iterator[str | Placeholder]:
    end = 0
    for match in _MARK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["stray"]:
            cure = "write {{ name }} in lower case with one space on each side, or {{{{ for two literal braces"
            raise ConfigurationError(file, f"line {line}", "`{{` opens no placeholder", cure)
        yield text[end : match.start()]
        yield "{{" if match["literal"] else Placeholder(match["name"], line)
        end = match.end()
    yield text[end:]
