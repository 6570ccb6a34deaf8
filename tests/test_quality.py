"""A summary that is not its source's is seen without a model, and versions that differ are told from those that do not.

What is detected how often is measured on documents with summaries that people wrote; each bound is a little below.
"""

import dataclasses
import json
import random
import re
import time
from collections.abc import Sequence
from functools import cache
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.extractive import summarise
from penstock.quality import ALPHA, MIN_COVERAGE, Moved, Quality, check, compare, unsupported_numbers
from tests.system.corpus import DOCUMENTS, needs_documents

SETS = ("federal_register", "rust_rfcs")
SHIFTS = (1, 2, 3, 5, 7, 11, 17, 29)
DIGIT = re.compile(r"\d")
GOOD = Quality(
    words=100,
    ratio=0.1,
    coverage=0.9,
    unsupported_numbers=0,
    verbatim_share=0.2,
    is_refusal=False,
    is_truncated=False,
)

some_text = st.text(max_size=200) | st.lists(
    st.sampled_from(["Rates", "rose", "to", "4", "1,000", "2.5 million", "the", "fell.", "\u6570\u636e", "-", "\n"]),
    max_size=40,
).map(" ".join)


@cache
def read(name: str) -> list[tuple[str, str]]:
    """Give the texts of a set with their summaries."""
    lines = DOCUMENTS.with_name(f"{name}.jsonl").read_text().splitlines()
    return [(row["text"], row["reference_summary"]) for row in map(json.loads, lines)]


def with_a_digit_changed(text: str, chance: random.Random) -> str:
    place = chance.choice([match.start() for match in DIGIT.finditer(text)])
    other = chance.choice([digit for digit in "0123456789" if digit != text[place]])
    return text[:place] + other + text[place + 1 :]


def bad(count: int, of: int, **fields: float | bool) -> list[Quality]:
    """Give `of` results, `count` of which have other fields than good ones."""
    return [dataclasses.replace(GOOD, **fields)] * count + [GOOD] * (of - count)  # type: ignore[arg-type]


def names(moved: Sequence[Moved]) -> list[str]:
    return [one.name for one in moved]


@needs_documents
@pytest.mark.parametrize(
    ("name", "least", "most_false"), [("federal_register", 0.88, 0.072), ("rust_rfcs", 0.87, 0.081)]
)
def test_results_of_other_documents_are_poorly_covered(name: str, least: float, most_false: float) -> None:
    rows = read(name)
    own = [check(text, summary).is_poorly_covered for text, summary in rows]
    swapped = [
        check(text, rows[(place + shift) % len(rows)][1]).is_poorly_covered
        for shift in SHIFTS
        for place, (text, _) in enumerate(rows)
    ]
    assert fmean(own) <= most_false
    assert fmean(swapped) >= least


@needs_documents
@pytest.mark.parametrize(
    ("name", "least", "most_false"), [("federal_register", 0.88, 0.235), ("rust_rfcs", 0.77, 0.101)]
)
def test_changed_digits_are_numbers_that_the_source_lacks(name: str, least: float, most_false: float) -> None:
    chance = random.Random(1)
    rows = read(name)
    changed = [
        bool(unsupported_numbers(text, with_a_digit_changed(summary, chance)))
        for text, summary in rows
        if DIGIT.search(summary)
        for _ in range(5)
    ]
    assert fmean(check(text, summary).has_unsupported_numbers for text, summary in rows) <= most_false
    assert fmean(changed) >= least


@needs_documents
@pytest.mark.parametrize("name", SETS)
def test_sentences_of_the_document_are_supported_by_it(name: str) -> None:
    found = [check(text, summarise(text)) for text, _ in read(name)[::4]]
    assert {one.coverage for one in found} == {1.0}
    assert {one.unsupported_numbers for one in found} == {0}
    assert {one.is_refusal for one in found} == {False}
    assert all(one.verbatim_share is not None and one.verbatim_share > 0.5 for one in found)


@needs_documents
@pytest.mark.parametrize(("name", "most"), [("federal_register", 0.0), ("rust_rfcs", 0.081)])
def test_what_people_wrote_is_seldom_taken_for_cut_and_never_for_a_refusal(name: str, most: float) -> None:
    own = [check(text, summary) for text, summary in read(name)]
    cut = [check("", summary[: len(summary) * 7 // 10]) for _, summary in read(name)]
    assert fmean(one.is_truncated for one in own) <= most
    assert fmean(one.is_truncated for one in cut) >= 0.96
    assert not any(one.is_refusal for one in own)


@needs_documents
def test_versions_that_differ_are_told_from_halves_of_one() -> None:
    rows = read("federal_register")
    own = [check(text, summary) for text, summary in rows]
    swapped = [check(text, rows[place - 7][1]) for place, (text, _) in enumerate(rows)]
    chance = random.Random(1)
    halves = []
    for _ in range(40):
        chance.shuffle(own)
        halves += compare(own[::2], own[1::2])
    assert halves == []
    assert names(compare(own, swapped)) == [
        "coverage",
        "verbatim_share",
        "is_poorly_covered",
        "has_unsupported_numbers",
    ]


def test_every_field_has_its_value() -> None:
    source = "The council raised the fee to $1,250 on 3 May 2019. Nobody objected. It takes effect in June."
    summary = "The council raised the fee to $1,250 on 3 May 2019, and 40 people objected loudly."
    assert check(source, summary, "stop") == Quality(
        words=16,
        ratio=16 / 18,
        coverage=4 / 6,
        unsupported_numbers=1,
        verbatim_share=5 / 10,
        is_refusal=False,
        is_truncated=False,
    )


@pytest.mark.parametrize("summary", ["", " \n\t ", "\u3000"])
def test_an_empty_summary_has_no_shares(summary: str) -> None:
    found = check("A source with 3 words.", summary)
    assert found == Quality(0, 0.0, None, 0, None, is_refusal=False, is_truncated=False)
    assert found.is_empty
    assert not found.is_poorly_covered
    assert check("A source.", summary, "length").is_truncated


def test_an_empty_source_supports_nothing() -> None:
    assert check("", "Rates rose by 5.") == Quality(4, None, 0.0, 1, None, is_refusal=False, is_truncated=False)


def test_only_numbers_have_no_content_words() -> None:
    found = check("7 8 9", "7 8 10")
    assert (found.coverage, found.unsupported_numbers, found.is_poorly_covered) == (None, 1, False)


@pytest.mark.parametrize(
    ("source", "summary", "coverage", "is_truncated"),
    [
        ("本条例规定了数据的保护方式。人人都有权利。", "条例保护数据。", 1.0, False),
        ("Закон вступает в силу в мае. Штраф вырос.", "Закон вступает в силу, налог упал", 4 / 6, True),
        ("يدخل القانون حيز التنفيذ في مايو.", "يدخل القانون حيز التنفيذ؟", 1.0, False),
        ("कानून मई में लागू होता है।", "कानून लागू होता है।", 1.0, False),
        ("กฎหมายมีผลบังคับใช้", "กฎหมายมีผลบังคับใช้", 1.0, False),
        ("Der Strom wurde knapp.", "STROM knapp!", 1.0, False),
    ],
)
def test_other_scripts_and_cases_are_read(source: str, summary: str, coverage: float, *, is_truncated: bool) -> None:
    found = check(source, summary)
    assert found.coverage == pytest.approx(coverage)
    assert found.is_truncated == is_truncated


@pytest.mark.parametrize(
    ("source", "summary"),
    [
        ("1,000", "1000"),
        ("1000", "1.000,00"),
        ("1,234,567.80", "1\u202f234\u202f567,8"),
        ("1'250'000", "1.25 million"),
        ("$1.5 million", "1,500,000 dollars"),
        ("EUR 3bn", "\u20ac3,000 million"),
        ("1.5 million", "in millions: 1.5"),
        ("5 %", "5 percent, or 5.0%"),
        ("007", "7"),
        ("0.125", "0,1250"),
        ("3.05.2017", "5/3/2017"),
        ("the 21st of May", "May 21"),
        ("\u0661\u0662\u0663", "123"),
        ("\uff11\uff12", "12"),
        ("nothing", "1. nothing\n2) at all"),
        ("3 of 4 millions", "3\n1) million"),
    ],
)
def test_a_number_is_the_same_in_another_notation(source: str, summary: str) -> None:
    assert unsupported_numbers(source, summary) == ()


@pytest.mark.parametrize(
    ("source", "summary", "lacking"),
    [
        ("1000", "10,000 and 100 and 10,000", ("10000", "100")),
        ("$120,000", "$12,000", ("12000",)),
        ("0.125", "125", ("125",)),
        ("1.5", "1.5 billion", ("1500000000",)),
        ("14.3.2", "14.3.20", ("20",)),
        ("two", "2.50", ("2.5",)),
        ("12.5", "12", ("12",)),
        ("", "0.00", ("0",)),
        ("", "1.125 or 1,125", ("1125",)),
        ("", "1234.567", ("1234.567",)),
    ],
)
def test_another_number_is_not_supported(source: str, summary: str, lacking: tuple[str, ...]) -> None:
    assert unsupported_numbers(source, summary) == lacking


@pytest.mark.parametrize(
    "summary",
    [
        "I cannot summarize this document.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "As an AI language model, I have no opinion on it.",
        "I am unable to access the file that you mention.",
        "I apologise, but there is nothing here.",
        "I must respectfully decline.",
        "Please provide the text of the document.",
    ],
)
def test_a_refusal_is_seen_at_the_beginning(summary: str) -> None:
    assert check("A source.", summary).is_refusal
    assert not check("A source.", "The minister spoke for an hour. " * 10 + summary).is_refusal


@pytest.mark.parametrize(
    "summary",
    [
        "The agency cannot provide funds.",
        "I cannot remember a better year, the president said.",
        "The agency is sorry for the delay; comments may be sent to the docket.",
        "The provider must decline the claim.",
        "I cannot readily agree, he said.",
    ],
)
def test_what_a_document_says_is_no_refusal(summary: str) -> None:
    assert not check("A source.", summary).is_refusal


@pytest.mark.parametrize(
    ("summary", "finish_reason", "is_truncated"),
    [
        ("It ends.", None, False),
        ("It ends.", "stop", False),
        ("It ends.", "length", True),
        ("It ends.", "MAX_TOKENS", True),
        ("It does not", "stop", True),
        ("It does not end,", None, True),
        ("**It ends.**\n", None, False),
        ("(\u201cIt ends!\u201d)", None, False),
        ("A heading:", None, True),
    ],
)
def test_a_cut_summary_is_seen_by_its_end(summary: str, finish_reason: str | None, *, is_truncated: bool) -> None:
    assert check("A source.", summary, finish_reason).is_truncated == is_truncated


def test_the_longest_sources_are_checked_within_a_second() -> None:
    chance = random.Random(1)
    source = " ".join(f"word{chance.randrange(9000)} {chance.randrange(10**6):,}." for _ in range(25_000))
    began = time.process_time()
    check(source, source[:3000])
    assert time.process_time() - began < 1


@pytest.mark.parametrize("piece", ["1,", "1,234,", "1.5 ", "9", " ", "\n", "a", "I ", "*", ".", "\u6570"])
def test_no_text_takes_longer_than_its_length(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    began = time.process_time()
    check(text, text)
    assert time.process_time() - began < 5


@settings(deadline=None)
@given(some_text, some_text)
def test_any_texts_have_shares_between_none_and_all(source: str, summary: str) -> None:
    found = check(source, summary)
    for share in (found.coverage, found.verbatim_share):
        assert share is None or 0 <= share <= 1
    assert 0 <= found.unsupported_numbers <= len(DIGIT.findall(summary))
    assert found.is_empty == (not summary.split())


@settings(deadline=None)
@given(some_text, some_text)
def test_a_part_of_the_source_is_supported(before: str, summary: str) -> None:
    found = check(f"{before}\n{summary}\n", summary)
    assert found.coverage in {None, 1.0}
    assert found.verbatim_share in {None, 1.0}
    assert found.unsupported_numbers == 0


@settings(deadline=None)
@given(some_text, some_text, some_text)
def test_more_of_a_source_never_supports_less(source: str, more: str, summary: str) -> None:
    less, all_of_it = check(source, summary), check(f"{source}\n.\n{more}", summary)
    assert (less.coverage or 0) <= (all_of_it.coverage or 0)
    assert (less.verbatim_share or 0) <= (all_of_it.verbatim_share or 0)
    assert less.unsupported_numbers >= all_of_it.unsupported_numbers


qualities = st.lists(
    st.builds(
        Quality,
        words=st.integers(0, 300),
        ratio=st.none() | st.floats(0, 2),
        coverage=st.none() | st.floats(0, 1),
        unsupported_numbers=st.integers(0, 3),
        verbatim_share=st.none() | st.floats(0, 1),
        is_refusal=st.booleans(),
        is_truncated=st.booleans(),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(qualities, qualities)
def test_what_moved_moved_both_ways(before: list[Quality], after: list[Quality]) -> None:
    there, back = compare(before, after), compare(after, before)
    assert [(one.name, one.before, one.after) for one in there] == [(one.name, one.after, one.before) for one in back]
    assert [one.statistic for one in there] == pytest.approx([one.statistic for one in back])
    assert all(one.statistic > one.threshold for one in there)


@settings(deadline=None)
@given(qualities)
def test_nothing_moved_from_itself(found: list[Quality]) -> None:
    assert compare(found, found) == []
    assert compare(found, []) == []
    assert compare([], found) == []


def test_a_quantity_moves_by_the_distance_of_its_distributions() -> None:
    before = [dataclasses.replace(GOOD, words=words) for words in range(100, 140)]
    after = [dataclasses.replace(GOOD, words=words) for words in range(120, 160)]
    (moved,) = compare(before, after)
    assert (moved.name, moved.before, moved.after, moved.statistic) == ("words", 119.5, 139.5, 0.5)
    assert moved.threshold == pytest.approx(0.43288, abs=1e-5)
    assert compare(before[:30], after[:30]) != []
    assert compare(before[::2], after[::2]) == []


def test_a_rate_moves_by_its_z() -> None:
    (moved,) = compare(bad(2, 200, is_refusal=True), bad(22, 200, is_refusal=True))
    assert (moved.name, moved.before, moved.after) == ("is_refusal", 0.01, 0.11)
    assert moved.statistic == pytest.approx(4.1401, abs=1e-4)
    assert moved.threshold == pytest.approx(3.2608, abs=1e-4)


@pytest.mark.parametrize(
    ("before", "after"),
    [((0, 1000), (1, 20)), ((0, 1000), (1, 1)), ((0, 5), (5, 5)), ((500, 1000), (17, 20)), ((100, 200), (120, 200))],
)
def test_what_chance_does_to_a_rate_is_not_flagged(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert compare(bad(*before, is_truncated=True), bad(*after, is_truncated=True)) == []


def test_a_share_that_is_not_known_is_left_out() -> None:
    unknown = [dataclasses.replace(GOOD, coverage=None, ratio=None, verbatim_share=None)] * 50
    assert compare([GOOD] * 50, unknown) == []
    assert names(compare(bad(0, 50), bad(30, 50, coverage=MIN_COVERAGE - 0.01))) == ["coverage", "is_poorly_covered"]
    assert names(compare(bad(0, 50), bad(30, 50, coverage=MIN_COVERAGE))) == ["coverage"]


def test_versions_that_are_alike_are_flagged_no_more_often_than_said() -> None:
    chance = random.Random(1)

    def results() -> list[Quality]:
        return [
            Quality(
                words=chance.randrange(50, 150),
                ratio=chance.random(),
                coverage=chance.random(),
                unsupported_numbers=chance.random() < 0.05,
                verbatim_share=chance.random(),
                is_refusal=chance.random() < 0.01,
                is_truncated=chance.random() < 0.3,
            )
            for _ in range(60)
        ]

    assert sum(bool(compare(results(), results())) for _ in range(400)) <= 400 * ALPHA
