"""Writes TOML: tables one level deep, of numbers, strings, lists, dates and inline tables. It must not know any key."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any


def write_toml(path: Path, content: Mapping[str, Any]) -> None:
    """Write what stands at the top, then a table for each value that is a mapping, named by its dotted key."""
    top = {name: value for name, value in content.items() if not isinstance(value, Mapping)}
    lines = [f"{name} = {_value(value)}" for name, value in top.items()]
    for name, table in content.items():
        if isinstance(table, Mapping):
            lines += ["", name if name.startswith("[") else f"[{name}]"]
            lines += [f"{key} = {_value(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    return value.isoformat() if isinstance(value, date) else json.dumps(value)
