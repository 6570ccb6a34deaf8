"""The loader of Lua, and what every script must say of itself."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import redis
from redis.exceptions import ResponseError

import penstock.gates
from penstock.gates import scripts
from penstock.gates.scripts import INCLUDE, AsyncScripts, SyncScripts, source
from penstock.store.redis import async_redis
from workers.embedded import EmbeddedServices

FILES = sorted((Path(penstock.gates.__file__).parent / "lua").glob("*.lua"))
TEXTS = {file.stem: file.read_text(encoding="utf-8") for file in FILES}
INCLUDED = {name for text in TEXTS.values() for name in INCLUDE.findall(text)}
OPERATIONS = sorted(TEXTS.keys() - INCLUDED)
LONGEST = 80
ECHO = "return cjson.encode({keys = KEYS, given = cjson.decode(ARGV[1]), many = #ARGV})"

every_file = pytest.mark.parametrize("name", sorted(TEXTS))
every_operation = pytest.mark.parametrize("name", OPERATIONS)


def header(name: str) -> str:
    """Give the comment with which a file begins."""
    lines = TEXTS[name].splitlines()
    ends = next(index for index, line in enumerate(lines) if not line.startswith("--") or INCLUDE.match(line))
    return "\n".join(lines[:ends])


def code(name: str) -> str:
    """Give a file without its comments."""
    return re.sub(r"--.*", "", TEXTS[name])


def test_there_are_scripts_and_what_they_include_is_there() -> None:
    assert {"acquire", "settle", "throttle", "extend", "room"} <= set(OPERATIONS)
    assert TEXTS.keys() >= INCLUDED
    assert "pool" in INCLUDED


@every_file
def test_a_script_is_short_and_begins_with_what_it_is(name: str) -> None:
    assert len(TEXTS[name].splitlines()) <= LONGEST
    assert len(header(name)) > len("-- ")


@every_operation
def test_a_scripts_header_has_its_contract(name: str) -> None:
    words = header(name)
    assert re.search(r"^-- +KEYS", words, re.MULTILINE)
    assert re.search(r"^-- +ARGV\[1\]", words, re.MULTILINE)
    assert re.search(r"^-- +returns", words, re.MULTILINE | re.IGNORECASE)


@every_operation
def test_every_key_that_a_script_uses_is_named_in_its_contract(name: str) -> None:
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", code(name))}
    used |= {
        int(number) for each in INCLUDE.findall(TEXTS[name]) for number in re.findall(r"KEYS\[(\d+)\]", code(each))
    }
    named = re.search(r"^-- +KEYS(.*?)^-- +ARGV", header(name), re.MULTILINE | re.DOTALL)
    assert named is not None
    assert {number for number in used if not re.search(rf"\b{number}\b", named[1])} == set()


@every_operation
def test_a_script_reads_one_argument_and_touches_no_key_that_it_was_not_given(name: str) -> None:
    whole = re.sub(r"--.*", "", source(name))
    assert set(re.findall(r"ARGV\[(\w+)\]", whole)) == {"1"}
    calls = re.findall(r"redis\.call\('(\w+)'(?:, ([^,)]+))?", whole)
    made_up = [(command, key) for command, key in calls if key.startswith(("'", '"')) or ".." in key]
    assert made_up == []
    assert {command for command, key in calls if not key} <= {"TIME"}


@every_operation
def test_a_script_that_writes_gives_its_keys_a_ttl(name: str) -> None:
    whole = source(name)
    for write, keep in {"'HSET'": "'PEXPIRE'", "'ZADD'": "'PEXPIRE'", "'SET'": "'PX'"}.items():
        assert write not in whole or keep in whole


@every_file
def test_a_script_is_valid_lua_with_what_it_includes(broker: redis.Redis, name: str) -> None:
    assert len(str(broker.script_load(source(name)))) == len("e0e1f9fabfc9d4800c877a703b823ac0578ff831")


def test_an_included_file_stands_where_its_line_stood() -> None:
    assert INCLUDE.sub("", source("settle")) == source("settle")
    before, after = TEXTS["settle"].split("-- include pool\n-- include promises\n")
    assert source("settle") == before + TEXTS["pool"] + "\n" + TEXTS["promises"] + "\n" + after


def test_a_script_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"no_such\.lua"):
        source("no_such")


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that gives back what it was given, and one that fails."""
    texts = {"echo": ECHO, "fail": "return redis.error_reply('no such thing')"}
    monkeypatch.setattr(scripts, "source", lambda name: texts[name])


def run(services: EmbeddedServices, name: str, given: Mapping[str, object], now_ms: float | None = None) -> object:
    async def both() -> object:
        clock = None if now_ms is None else lambda: now_ms
        client = async_redis(f"unix://{services.redis.socket_path}")
        try:
            return await AsyncScripts(client, clock).run(name, ["{a}:1", "{a}:2"], given)
        finally:
            await client.aclose()

    return asyncio.run(both())


@pytest.mark.usefixtures("echo", "broker")
@pytest.mark.parametrize("given", [{}, {"a": 1, "b": [{"c": None, "d": "ä\n\x00€"}], "e": 0.5}])
def test_a_script_gets_its_keys_and_one_object(services: EmbeddedServices, given: dict[str, object]) -> None:
    expected = {"keys": ["{a}:1", "{a}:2"], "given": given, "many": 1}
    assert run(services, "echo", given) == expected


@pytest.mark.usefixtures("echo", "broker")
def test_a_given_clock_stands_in_the_object(services: EmbeddedServices) -> None:
    answer = run(services, "echo", {"a": 1}, now_ms=1_800_000_000_000.5)
    assert answer == {"keys": ["{a}:1", "{a}:2"], "given": {"a": 1, "now_ms": 1_800_000_000_000.5}, "many": 1}


@pytest.mark.usefixtures("echo")
def test_without_a_loop_it_is_the_same(broker: redis.Redis) -> None:
    expected = {"keys": ["k"], "given": {"a": 1}, "many": 1}
    assert SyncScripts(broker).run("echo", ["k"], {"a": 1}) == expected
    assert SyncScripts(broker, lambda: 7).run("echo", ["k"], {"a": 1}) == expected | {"given": {"a": 1, "now_ms": 7}}


@pytest.mark.usefixtures("echo", "broker")
def test_a_script_that_fails_raises(services: EmbeddedServices) -> None:
    with pytest.raises(ResponseError, match="no such thing"):
        run(services, "fail", {})


@pytest.mark.usefixtures("echo")
def test_a_redis_that_forgot_its_scripts_learns_them_again(broker: redis.Redis, services: EmbeddedServices) -> None:
    async def again() -> list[object]:
        client = async_redis(f"unix://{services.redis.socket_path}")
        loader = AsyncScripts(client)
        answers: list[object] = [await loader.run("echo", [], {})]
        broker.script_flush()
        answers.append(await loader.run("echo", [], {}))
        await client.aclose()
        return answers

    expected = {"keys": {}, "given": {}, "many": 1}
    assert asyncio.run(again()) == [expected, expected]
    broker.script_flush()
    assert SyncScripts(broker).run("echo", [], {}) == expected


@pytest.mark.usefixtures("echo")
def test_the_text_of_a_script_is_sent_once(broker: redis.Redis, services: EmbeddedServices) -> None:
    async def often() -> None:
        client = async_redis(f"unix://{services.redis.socket_path}")
        loader = AsyncScripts(client)
        for _ in range(20):
            await loader.run("echo", [], {})
        await client.aclose()

    broker.script_flush()
    broker.config_resetstat()
    asyncio.run(often())
    calls = {name: each["calls"] for name, each in broker.info("commandstats").items()}
    assert sum(count for name, count in calls.items() if name.startswith("cmdstat_script")) == 1
    assert calls["cmdstat_evalsha"] == 21
    assert "cmdstat_eval" not in calls
