"""Flower asks who looks, and shows identifiers alone."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CONFIG = Path(__file__).parents[1] / "config" / "flowerconfig.py"
MARKER = "Mr. Bennet owes 4,711 pounds"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read the file as Flower does, in the environment given."""

    def run(**environment: str) -> dict[str, Any]:
        for name in ("PENSTOCK_FLOWER_OPEN", "PENSTOCK_FLOWER_AUTH", "PENSTOCK_FLOWER_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "unset")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(CONFIG))

    return run


def shown(read: Any, kwargs: Any, **fields: Any) -> SimpleNamespace:
    """Give a task as Flower shows it."""
    task = SimpleNamespace(args=f"('{MARKER}',)", kwargs=kwargs, **fields)
    formatted: SimpleNamespace = read(PENSTOCK_FLOWER_OPEN="1")["format_task"](task)
    return formatted


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PENSTOCK_FLOWER_OPEN": "0"},
        {"PENSTOCK_FLOWER_OPEN": "true"},
        {"PENSTOCK_FLOWER_AUTH": ""},
        {"PENSTOCK_FLOWER_AUTH": "user"},
        {"PENSTOCK_FLOWER_AUTH": "user:"},
        {"PENSTOCK_FLOWER_AUTH": ":password"},
    ],
)
def test_flower_does_not_start_without_a_user_and_a_password(read: Any, environment: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="set PENSTOCK_FLOWER_AUTH=user:password, or PENSTOCK_FLOWER_OPEN=1"):
        read(**environment)


def test_flower_asks_for_the_password(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(PENSTOCK_FLOWER_AUTH="user:pass:word")
    assert config["basic_auth"] == ["user:pass:word"]
    assert config["os"].environ["FLOWER_UNAUTHENTICATED_API"] == "unset"


def test_flower_is_open_only_when_told_so(read: Any) -> None:
    config = read(PENSTOCK_FLOWER_OPEN="1")
    assert "basic_auth" not in config
    assert config["os"].environ["FLOWER_UNAUTHENTICATED_API"] == "true"


def test_flower_listens_on_the_loopback_address_unless_told_otherwise(read: Any) -> None:
    assert read(PENSTOCK_FLOWER_OPEN="1")["address"] == "127.0.0.1"
    assert read(PENSTOCK_FLOWER_OPEN="1", PENSTOCK_FLOWER_ADDRESS="0.0.0.0")["address"] == "0.0.0.0"


def test_identifiers_are_shown_and_text_is_not(read: Any) -> None:
    kwargs = {
        "tenant": "acme",
        "tier": "small",
        "lane": "batch",
        "prompt": "p@1.0.0",
        "document": MARKER,
        "x": {"y": MARKER},
    }
    task = shown(read, repr(kwargs), state="SUCCESS")
    assert (task.args, task.state) == ("()", "SUCCESS")
    assert task.kwargs == "{'tenant': 'acme', 'tier': 'small', 'lane': 'batch', 'prompt': 'p@1.0.0'}"


def test_text_in_the_place_of_an_identifier_is_cut(read: Any) -> None:
    task = shown(read, repr({"tenant": MARKER * 100, "reason": ["timeout", MARKER * 100]}))
    assert len(task.kwargs) < 200


@pytest.mark.parametrize(
    "kwargs",
    [
        None,
        "",
        "{}",
        MARKER,
        repr(MARKER),
        repr([MARKER, "tenant"]),
        repr({MARKER}),
        repr("the tenant " + MARKER),
        "{'document': '" + MARKER[:10] + "...'}",
        "{'tenant': " + MARKER,
        "{...}",
        "7",
        "(" * 100_000,
        "[" * 500 + "]" * 500,
        "-" * 100_000 + "1",
        "\0",
        {"tenant": "acme"},
    ],
)
def test_arguments_that_are_no_mapping_are_not_shown(read: Any, kwargs: Any) -> None:
    task = shown(read, kwargs)
    assert (task.args, task.kwargs) == ("()", "{}")
