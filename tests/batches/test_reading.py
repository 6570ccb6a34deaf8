"""The input of a batch: every form, every way in which an item can be bad, and a memory that does not grow."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from penstock.batches import reading
from penstock.batches.reading import BadItem, Columns, Item, query, read
from penstock.errors import InvalidRequestError

AS_THEY_ARE = Columns({})
Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return to


def test_an_object_a_line_is_the_fields_of_a_request(write: Write) -> None:
    lines: list[dict[str, Any]] = [
        {"document": "A tale.", "variables": {"language": "German"}},
        {"document": "Another.", "priority": None},
    ]
    source = write("in.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, lines)))
    assert list(read(source, AS_THEY_ARE)) == [Item(1, lines[0]), Item(3, {"document": "Another."})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[1]", "it is no JSON object"),
        (b'"a"', "it is no JSON object"),
        (b'{"document": "\xff"}', "it is not UTF-8"),
        (b'{"text": "no document"}', "it has no 'body'"),
        (b'{"body": "' + b"x" * 100 + b'"}', "its line is longer than 80 bytes"),
        (b'{"body": "' + b"x" * 1000 + b'"}', "its line is longer than 80 bytes"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_those_behind_it_are_read(
    write: Write, monkeypatch: pytest.MonkeyPatch, line: bytes, reason: str
) -> None:
    if "longer" in reason:
        monkeypatch.setattr(reading, "MOST_BYTES_A_LINE", 80)
    source = write("in.jsonl", b'{"body": "first"}\n' + line + b'\n{"body": "last"}')
    assert list(read(source, Columns({"document": "body"}))) == [
        Item(1, {"document": "first"}),
        BadItem(2, reason),
        Item(3, {"document": "last"}),
    ]


def test_columns_of_a_csv_are_mapped(write: Write) -> None:
    source = write("in.csv", '\ufeffid,body,lang\n7,"A ""tale"",\nin two lines",German\n8,Another.,\n')
    columns = Columns.parse(("document=body", "variables.language=lang", "metadata.id=id"))
    assert list(read(source, columns)) == [
        Item(1, {"document": 'A "tale",\nin two lines', "variables": {"language": "German"}, "metadata": {"id": "7"}}),
        Item(2, {"document": "Another.", "variables": {"language": ""}, "metadata": {"id": "8"}}),
    ]
    assert list(read(write("named.csv", "document,metadata.id\na,1\n"), AS_THEY_ARE)) == [
        Item(1, {"document": "a", "metadata": {"id": "1"}})
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,b,c", "it has 3 fields where the header has 2"),
        (b"a", "it has 1 fields where the header has 2"),
        (b"a,\xff", "it is not UTF-8"),
        (b'a,"b"c', "it is no CSV: ',' expected after '\"'"),
    ],
)
def test_a_bad_row_is_told_by_its_number_and_those_behind_it_are_read(write: Write, row: bytes, reason: str) -> None:
    source = write("in.csv", b"id,document\n1,first\n" + row + b"\n3,last\n")
    columns = Columns({"document": "document"})
    assert list(read(source, columns)) == [
        Item(1, {"document": "first"}),
        BadItem(2, reason),
        Item(3, {"document": "last"}),
    ]


@pytest.mark.parametrize(
    "fields", [{"variables": {"a": "b"}, "variables.c": "d"}, {"variables.c": "d", "variables": {"a": "b"}}]
)
def test_a_field_and_a_part_of_it(write: Write, fields: dict[str, Any]) -> None:
    [found] = read(write("in.jsonl", json.dumps(fields)), AS_THEY_ARE)
    whole_first = next(iter(fields)) == "variables"
    assert found == (
        Item(1, {"variables": {"a": "b", "c": "d"}})
        if whole_first
        else BadItem(1, "'variables' is given beside a part of it")
    )


def test_a_folder_is_read_by_name_and_what_is_hidden_is_not(write: Write, tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.pdf", ".git/config", ".hidden", "sub/.DS_Store"):
        write(f"in/{name}", "x")
    found = [item.fields for item in read(str(tmp_path / "in"), AS_THEY_ARE) if isinstance(item, Item)]
    paths = [tmp_path / "in" / name for name in ("a.md", "b.txt", "sub/c.pdf")]
    assert found == [{"document": path, "metadata": {"path": str(path)}} for path in paths]


def test_a_glob_and_a_single_document(write: Write, tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "deep/d.txt"):
        write(name, "x")

    def names(source: str) -> list[str]:
        return [item.fields["document"].name for item in read(source, AS_THEY_ARE) if isinstance(item, Item)]

    assert names(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert names(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "d.txt"]
    assert names(f"{tmp_path}/c.md") == ["c.md"]


@pytest.mark.parametrize("name", ["a[1].txt", "in[1]/a.txt", "in [x]/*.txt"])
def test_a_name_that_looks_like_a_glob_is_a_name_where_it_exists(write: Write, tmp_path: Path, name: str) -> None:
    written = write(name, "x")
    source = tmp_path / Path(name).parts[0]
    found = [item.fields["document"] for item in read(str(source), AS_THEY_ARE) if isinstance(item, Item)]
    assert found == [Path(written)]


def test_the_ending_of_a_file_may_be_in_capitals(write: Write) -> None:
    assert list(read(write("IN.JSONL", '{"document": "a"}'), AS_THEY_ARE)) == [Item(1, {"document": "a"})]
    assert list(read(write("IN.CSV", "document\na\n"), AS_THEY_ARE)) == [Item(1, {"document": "a"})]


def test_an_empty_line_of_a_csv_is_no_item(write: Write) -> None:
    assert list(read(write("in.csv", "document\na\n\nb\n\n"), AS_THEY_ARE)) == [
        Item(1, {"document": "a"}),
        Item(3, {"document": "b"}),
    ]


def test_a_csv_whose_header_is_none_is_refused(write: Write) -> None:
    with pytest.raises(InvalidRequestError, match=r"the header of 'in\.csv' is no CSV: ',' expected after"):
        list(read(write("in.csv", '"a"b,c\n1,2\n'), AS_THEY_ARE))


@pytest.mark.parametrize("source", ["nowhere", "nowhere.jsonl", "*.txt", "empty"])
def test_an_input_that_is_not_there_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match="names no document") as refusal:
        list(read(str(tmp_path / source), AS_THEY_ARE))
    assert refusal.value.field == "input"


@pytest.mark.parametrize("written", ["document", "=body", "document=", ""])
def test_a_mapping_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not FIELD=COLUMN"):
        Columns.parse((written,))
    with pytest.raises(InvalidRequestError, match="'document' is mapped twice"):
        Columns.parse(("document=a", "document=b"))


def test_rows_of_a_query_are_read_through_a_cursor(engine: Engine) -> None:
    statement = "SELECT n AS id, 'text ' || n AS body, NULL AS lang FROM generate_series(1, 1200) AS n ORDER BY n"
    columns = Columns.parse(("document=body", "metadata.id=id", "variables.language=lang"))
    found = list(query(engine, statement, columns))
    assert found[1199] == Item(1200, {"document": "text 1200", "metadata": {"id": "1200"}})
    assert [item.number for item in found] == list(range(1, 1201))


def test_a_query_is_sent_as_it_was_written(engine: Engine) -> None:
    statement = "SELECT 'at 10:30, 50 % and ' || lower('A:b') || ('%' LIKE '%')::text AS document"
    assert list(query(engine, statement, AS_THEY_ARE)) == [Item(1, {"document": "at 10:30, 50 % and a:btrue"})]


def test_a_query_that_postgres_refuses_is_told(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match='relation "nowhere" does not exist') as refusal:
        list(query(engine, "SELECT * FROM nowhere", AS_THEY_ARE))
    assert refusal.value.field == "query"


@given(st.lists(st.dictionaries(st.sampled_from(["document", "tenant", "x"]), st.text(), min_size=1)))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [] if not rows else list(read(str(path), AS_THEY_ARE))
    assert found == [Item(number, row) for number, row in enumerate(rows, start=1)]


def test_a_hundred_thousand_items_take_the_memory_of_a_few(tmp_path: Path) -> None:
    line = json.dumps({"document": "x" * 1000}) + "\n"
    peaks = []
    for count in (100, 100_000):
        path = tmp_path / "in.jsonl"
        with path.open("w") as file:
            file.writelines(line for _ in range(count))
        tracemalloc.start()
        assert sum(1 for _ in read(str(path), AS_THEY_ARE)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
