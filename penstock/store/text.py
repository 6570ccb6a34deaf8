"""What text Postgres can hold. It must not know whose text it is."""

import re
from collections.abc import Mapping
from typing import Any

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Replace NUL and halves of surrogate pairs, which no text column takes, by U+FFFD."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def storable_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make every text of a row storable: one that a provider sent must not keep the whole row from being written."""
    return {name: storable(value) if isinstance(value, str) else value for name, value in row.items()}
