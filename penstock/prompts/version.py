"""Semantic versions in their order of precedence (semver.org, item 11). It must not know what carries one."""

import re
from dataclasses import dataclass, field
from typing import Self

_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?")


@dataclass(frozen=True, order=True)
class Version:
    """A version without build metadata, which has no precedence; versions compare by precedence."""

    release: tuple[int, int, int]
    is_stable: bool
    prerelease: tuple[tuple[bool, int, str], ...]
    text: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1.2.3` or `1.2.3-rc.1`; raises ValueError for everything else."""
        match = _SEMVER.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not a semantic version")
        major, minor, patch, prerelease = match.groups()
        identifiers = prerelease.split(".") if prerelease else []
        return cls((int(major), int(minor), int(patch)), not identifiers, tuple(map(_precedence, identifiers)), text)


def _precedence(identifier: str) -> tuple[bool, int, str]:
    if identifier.isdecimal():
        return (False, int(identifier), "")
    return (True, 0, identifier)
