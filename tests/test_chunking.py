"""A long text is cut whole into chunks that fit, where people would cut it, in linear time; quotes are found in it."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.documents.chunking import Chunk, chunk, find_quote
from penstock.extractive.sentences import split_sentences
from tests.system.corpus import DOCUMENTS, needs_documents

SAMPLES = Path(__file__).parents[1] / "samples"
SPEECH = (SAMPLES / "state-of-the-union-2000.txt").read_text()
PIECES = (
    *("a", "word ", "Ends. ", "\u7b2c\u4e00\u6761\u3002", "\n", "\r\n", "\r", "\n\n", "\n \n", "\t", "     ", "```\n"),
    *("# Title\n", "Chapter 4\n\n", "II. Scope\n\n", "CAPITALS\n\n", "Under\n=====\n", "- item\n", "x" * 40),
    *("e\u0301", "\u0301", "\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\ud83d\ude00", "\u2028", "\x00"),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60).map("".join)
SLOWLY = settings(max_examples=150, deadline=None)


def count_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def count_quarters(text: str) -> int:
    return ceil(len(text) / 4)


def count_words(text: str) -> int:
    return len(text.split())


def count_message(text: str) -> int:
    return 3 + count_words(text)


def count_unevenly(text: str) -> int:
    return sum(ord(character) % 7 for character in text)


COUNTS = st.sampled_from([len, count_bytes, count_quarters, count_words, count_message, count_unevenly])


class Counted:
    """Remembers how often and over how many characters it counts."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self.count = count
        self.calls = 0
        self.characters = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        self.characters += len(text)
        return self.count(text)


def cut(text: str, most: int) -> list[str]:
    """Cut by characters."""
    return [part.text for part in chunk(text, most, len)]


def federal_register() -> list[str]:
    with DOCUMENTS.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def paragraphs_of(sizes: list[int]) -> list[str]:
    return [f"{'p' * size}.\n\n" for size in sizes]


@SLOWLY
@given(TEXTS, st.integers(12, 60), COUNTS)
def test_chunks_tile_the_text(text: str, most_tokens: int, count: Any) -> None:
    chunks = chunk(text, most_tokens, count)
    assert "".join(part.text for part in chunks) == text
    assert [part.number for part in chunks] == list(range(1, len(chunks) + 1))
    assert all(part.text == text[part.start : part.end] for part in chunks)
    assert all(before.end == after.start for before, after in pairwise(chunks))
    assert all(part.start < part.end for part in chunks)
    assert not chunks or (chunks[0].start, chunks[-1].end) == (0, len(text))


@SLOWLY
@given(TEXTS, st.integers(12, 60), COUNTS)
def test_every_chunk_fits(text: str, most_tokens: int, count: Any) -> None:
    assert all(count(part.text) <= most_tokens for part in chunk(text, most_tokens, count))


@SLOWLY
@given(TEXTS, st.integers(12, 60), COUNTS)
def test_the_same_text_gives_the_same_chunks(text: str, most_tokens: int, count: Any) -> None:
    assert chunk(text, most_tokens, count) == chunk(text, most_tokens, count)


@SLOWLY
@given(TEXTS, st.integers(2, 40))
def test_no_chunk_ends_inside_a_line_end_or_a_surrogate_pair(text: str, most: int) -> None:
    ends = [part.end for part in chunk(text, most, len)]
    assert not [end for end in ends if re.match("\r\n|[\ud800-\udbff][\udc00-\udfff]", text[end - 1 : end + 1])]


@SLOWLY
@given(st.lists(st.sampled_from(["a", " ", "e\u0301", "\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd"])))
def test_no_chunk_ends_inside_what_readers_take_for_one_character(characters: list[str]) -> None:
    whole = re.compile("(a| |e\u0301|\U0001f469\u200d\U0001f467|\U0001f44d\U0001f3fd)+")
    assert all(whole.fullmatch(part) for part in cut("".join(characters), 5))


@SLOWLY
@given(st.text("ab .\n", max_size=3000), st.integers(30, 300))
def test_chunks_are_more_than_a_third_full(text: str, most: int) -> None:
    sizes = [len(part) for part in cut(text, most)]
    assert len(sizes) <= 1 or min(sizes) > most // 3


@SLOWLY
@given(st.lists(st.integers(1, 30), min_size=1, max_size=100))
def test_paragraphs_stay_whole(sizes: list[int]) -> None:
    assert all(re.fullmatch(r"(p+\.\n\n)+", part) for part in cut("".join(paragraphs_of(sizes)), 99))


@SLOWLY
@given(st.lists(st.lists(st.integers(1, 15), min_size=1, max_size=2), min_size=1, max_size=30))
def test_sections_stay_whole(sections: list[list[int]]) -> None:
    text = "".join("# Title\n\n" + "".join(paragraphs_of(sizes)) for sizes in sections)
    assert all(part.startswith("# Title\n\n") for part in cut(text, 135))


@SLOWLY
@given(st.lists(st.integers(0, 30), min_size=1, max_size=100))
def test_sentences_stay_whole(sizes: list[int]) -> None:
    text = " ".join(f"W{'o' * size}rd." for size in sizes)
    assert [sentence for part in cut(text, 105) for sentence in split_sentences(part)] == split_sentences(text)


@SLOWLY
@given(st.lists(st.integers(1, 30), min_size=1, max_size=100))
def test_words_stay_whole(sizes: list[int]) -> None:
    text = " ".join("w" * size for size in sizes)
    assert [word for part in cut(text, 93) for word in part.split()] == text.split()


def test_a_text_that_fits_is_one_chunk() -> None:
    most_tokens = count_words(SPEECH)
    assert chunk(SPEECH, most_tokens, count_words) == [
        Chunk(1, 0, len(SPEECH), SPEECH, SPEECH.partition("\n")[0].strip())
    ]


def test_one_token_too_many_makes_two_halves() -> None:
    assert cut("x" * 101, 100) == ["x" * 50, "x" * 51]


def test_nothing_is_no_chunk() -> None:
    assert chunk("", 1, len) == []


def test_white_space_is_kept() -> None:
    assert cut(" \n" * 6, 5) == [" \n \n", " \n \n", " \n \n"]


@pytest.mark.parametrize(
    ("text", "most", "parts"),
    [
        ("One.\n\nTwo.\n\n# A\n\nThree.", 18, ["One.\n\nTwo.\n\n", "# A\n\nThree."]),
        ("One\nis.\n\nTwo\nis.\n\n", 13, ["One\nis.\n\n", "Two\nis.\n\n"]),
        ("One is. So\nTwo is. So\n", 15, ["One is. So\n", "Two is. So\n"]),
        ("One is so. Two is so.", 14, ["One is so. ", "Two is so."]),
        ("One is it\nso. Two is it\nso.", 18, ["One is it\nso. ", "Two is it\nso."]),
        ("one is\nso two is so", 14, ["one is\n", "so two is so"]),
        ("one is so\ntwo is so", 14, ["one is so\n", "two is so"]),
        ("one two three four", 12, ["one two ", "three four"]),
        ("onetwothreefour", 12, ["onetwot", "hreefour"]),
        (
            "\u7b2c\u4e00\u6761\u3002\u7b2c\u4e8c\u6761\u3002",
            6,
            ["\u7b2c\u4e00\u6761\u3002", "\u7b2c\u4e8c\u6761\u3002"],
        ),
        ("One.\r\n\r\nTwo is so.\r\n", 15, ["One.\r\n\r\n", "Two is so.\r\n"]),
        ("One is.\r\n\r\nTwo is\r\nSo. Now it.", 28, ["One is.\r\n\r\n", "Two is\r\nSo. Now it."]),
        ("One.\r\rTwo is so.\r", 12, ["One.\r\r", "Two is so.\r"]),
        ("One is so.\r\r    Two is.\r", 18, ["One is so.\r\r", "    Two is.\r"]),
        ("One is so.\n\n    Two is.\n", 18, ["One is so.\n\n", "    Two is.\n"]),
        ("One two:\n\nthree.\n\nFour five.", 20, ["One two:\n\nthree.\n\n", "Four five."]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_cuts_are_where_people_would_cut(text: str, most: int, parts: list[str]) -> None:
    assert cut(text, most) == parts


@pytest.mark.parametrize(
    ("lines", "heading"),
    [
        ("# Two", "Two"),
        ("###### Two ##", "Two"),
        ("Two\n===", "Two"),
        ("Two\n-----", "Two"),
        ("CHAPTER II", "CHAPTER II"),
        ("Chapter 2. In which they meet.", "Chapter 2. In which they meet."),
        ("PART B", "PART B"),
        ("2.1 Scope", "2.1 Scope"),
        ("2. Scope", "2. Scope"),
        ("IV. Costs", "IV. Costs"),
        ("B. Does this rule apply to me?", "B. Does this rule apply to me?"),
        ("\u00a7 199.4 Benefits", "\u00a7 199.4 Benefits"),
        ("SUPPLEMENTARY INFORMATION:", "SUPPLEMENTARY INFORMATION:"),
        (
            "\u0427\u0410\u0421\u0422\u042c \u0412\u0422\u041e\u0420\u0410\u042f",
            "\u0427\u0410\u0421\u0422\u042c \u0412\u0422\u041e\u0420\u0410\u042f",
        ),
    ],
)
def test_headings_of_many_kinds_begin_a_chunk_and_name_it(lines: str, heading: str) -> None:
    paragraph = f"{'Long ago it was. ' * 3}\n\n"
    text = f"# One\n\n{paragraph * 3}{lines}\n\n{paragraph * 3}"
    first, second = chunk(text, 280, len)
    assert (first.heading, second.heading) == ("One", heading)
    assert second.text.startswith(f"{lines}\n\n")


@pytest.mark.parametrize(
    "lines",
    [
        "```sh\n# a comment\n```",
        f"Chapter 2 tells of {'them and ' * 12}nothing else.",
        "```sh\n~~~\n# a comment\n```",
        "~~~\n```\n# a comment\n~~~",
        "2. do it.",
        "2. Go there.",
        "3 apples",
        "#hashtag",
        "N/A",
        "TBD, $60",
        "Some words that\nBEGIN IN THE MIDDLE\nof a paragraph.",
        f"# {'long ' * 30}",
    ],
)
def test_what_only_looks_like_a_heading_does_not_name_a_chunk(lines: str) -> None:
    text = f"# One\n\n{lines}\n\n{'Long ago it was. ' * 9}"
    assert {part.heading for part in chunk(text, 100, len)} == {"One"}


@pytest.mark.parametrize(
    "heads", ["# A\n\n## B\n\n", "# Who?\n\n## Why?\n\n", "Title?\n=====\n\n", "A short caption\n\n", "As follows:\n\n"]
)
def test_a_heading_stays_with_what_it_heads(heads: str) -> None:
    before, after = f"{'w' * (50 - len(heads))}.\n\n", f"{'w' * 44}.\n\n"
    assert cut(before + heads + after, 70) == [before, heads + after]


@pytest.mark.parametrize("heading", ["# Why?\n\n", "Why?\n====\n\n", "CAPITALS:\n\n"])
def test_a_chunk_ends_with_a_sentence_rather_than_with_a_heading(heading: str) -> None:
    before, after = f"{'w' * 26}.\n\n", "It is old. It is now. It is new. It is so. It was.\n\n"
    text = before + heading + after
    assert cut(text, 70)[0] in {before + heading + after[:11], before + heading + after[:22]}


def test_no_paragraph_of_few_words_is_left_over() -> None:
    assert cut(f"{'It is old. ' * 7}It is old.\n\nIt is.", 90) == [
        "It is old. " * 4,
        f"{'It is old. ' * 3}It is old.\n\nIt is.",
    ]


def test_abbreviations_and_ends_of_sentences_are_known_at_the_edges_of_what_is_searched() -> None:
    abbreviated = f"{'word ' * 9}w Messrs. Smith {'word ' * 20}"
    assert cut(abbreviated[:160], 100)[0] == f"{'word ' * 9}w Messrs. Smith {'word ' * 4}"
    long_sentences = f"{'It is old. ' * 7}It is older than that. "
    assert cut(long_sentences * 2, 100) == [long_sentences] * 2


def test_a_text_that_was_estimated_too_low_is_halved() -> None:
    assert [part.end for part in chunk("x" * 1000, 997, lambda text: len(text) - 1)] == [499, 1000]


def test_fenced_code_stays_whole() -> None:
    code = "```\none\n\ntwo\n\n# three\n```\n\n"
    text = f"{'w' * 30}.\n\n{code}{'w' * 30}.\n\n"
    assert cut(text, 70) == [f"{'w' * 30}.\n\n", f"{code}{'w' * 30}.\n\n"]


def test_a_chunk_in_the_middle_of_a_section_has_its_heading() -> None:
    text = f"Before.\n\n# A\n\n{'It is old. ' * 20}\n\n# B\n\n{'It is new. ' * 20}"
    places = [(part.start, part.heading) for part in chunk(text, 110, len)]
    assert places == [(0, ""), (91, "A"), (179, "A"), (236, "B"), (307, "B"), (384, "B")]


@pytest.mark.parametrize("most_tokens", [0, -1])
def test_no_tokens_at_all_are_refused(most_tokens: int) -> None:
    counted = Counted(len)
    with pytest.raises(ValueError, match=f"most_tokens must be at least 1, not {most_tokens}"):
        chunk("text", most_tokens, counted)
    assert counted.calls == 0


@pytest.mark.parametrize(
    ("text", "most_tokens", "said"),
    [
        ("ab\U0001f600", 3, "the character at 2 has 4 tokens, most_tokens is 3"),
        ("a\r\nb", 1, "the character at 1 has 2 tokens, most_tokens is 1"),
    ],
)
def test_a_character_that_does_not_fit_is_refused(text: str, most_tokens: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chunk(text, most_tokens, count_bytes)


def test_a_sequence_of_accents_that_fits_stays_whole() -> None:
    sequence = "e" + "\u0301" * 7
    assert cut(f"aa{sequence}{'a' * 7}", 12) == [f"aa{sequence}", "a" * 7]


def test_an_endless_sequence_is_not_cut_inside_a_surrogate_pair() -> None:
    assert {part[-1] for part in cut("\u200d\ud83d\ude00" * 40, 10)} <= {"\u200d", "\ude00"}


def test_endless_accents_are_cut_rather_than_refused() -> None:
    assert [len(part) for part in cut("e" + "\u0301" * 999, 100)] == [100] * 10


@pytest.mark.parametrize(
    "text",
    [SPEECH * 4, " ".join(SPEECH.split()) * 4, "x" * 200_000, "\n" * 200_000, "\u7b2c" * 200_000, "a\n" * 100_000],
    ids=["speeches", "one line", "one word", "no words", "ideographs", "short lines"],
)
@pytest.mark.parametrize("most_tokens", [500, 5_000, 20_000])
def test_each_character_is_counted_twice_or_little_more(text: str, most_tokens: int) -> None:
    counted = Counted(count_quarters)
    chunks = chunk(text, most_tokens, counted)
    assert counted.characters <= 2.25 * len(text)
    assert counted.calls <= 12 * len(chunks)


def test_counting_a_text_four_times_as_long_takes_four_times_as_much() -> None:
    once, four_times = Counted(count_words), Counted(count_words)
    chunk(SPEECH * 10, 1000, once)
    chunk(SPEECH * 40, 1000, four_times)
    assert four_times.characters / once.characters == pytest.approx(4, rel=0.02)
    assert four_times.calls / once.calls == pytest.approx(4, rel=0.02)


def test_a_count_that_hardly_falls_with_its_text_ends_in_few_tries() -> None:
    counted = Counted(lambda text: 1001 if len(text) > 100 else 1)
    chunks = chunk("x" * 10_000, 1000, counted)
    assert counted.calls <= 12 * len(chunks)


@needs_documents
def test_a_novel_is_cut_between_its_chapters() -> None:
    novel = (DOCUMENTS.parent / "pride-and-prejudice.txt").read_text()
    chunks = chunk(novel, 32_000, count_quarters)
    assert "".join(part.text for part in chunks) == novel
    assert [part.heading for part in chunks[1:]] == [f"Chapter {number}" for number in (15, 24, 35, 44, 52)]
    assert all(part.text.startswith(f"{part.heading}\n") for part in chunks[1:])


@needs_documents
def test_a_long_rule_is_cut_between_its_sections() -> None:
    longest = max(federal_register(), key=len)
    chunks = chunk(longest, 6_400, count_quarters)
    assert [(part.start, part.heading) for part in chunks] == [
        (0, "DEPARTMENT OF DEFENSE"),
        (23_421, "E. Changes to Health Plan Enrollment System"),
        (39_584, "III. Regulatory Procedures"),
        (60_548, "Section 199.17 is revised to read as follows."),
        (84_244, "Section 199.17 is revised to read as follows."),
        (108_030, "Section 199.17 is revised to read as follows."),
        (131_315, "Section 199.20 is amended by:"),
    ]


@needs_documents
def test_rules_and_notices_are_cut_between_paragraphs() -> None:
    cut_texts = [(text, chunk(text, 3_200, count_quarters)) for text in federal_register()]
    before_cuts = [text[: part.start] for text, chunks in cut_texts for part in chunks[1:]]
    assert all("".join(part.text for part in chunks) == text for text, chunks in cut_texts)
    assert len(before_cuts) == 181
    assert all(before.endswith("\n\n") for before in before_cuts)


@pytest.mark.parametrize(
    ("quote", "place"),
    [
        ("It was so.", (0, 10)),
        ("it is\nso.", (15, 27)),
        ("  it   is so. ", (15, 27)),
        ("so.", (7, 10)),
        ("so. But it", (7, 17)),
        ("it is", (15, 23)),
        ("t", (1, 2)),
        ("It is so.", None),
        ("itis so.", None),
        ("it is so. So", None),
        ("", None),
        (" \n", None),
    ],
)
def test_a_quote_is_found_whatever_its_white_space(quote: str, place: tuple[int, int] | None) -> None:
    text = "It was so. But it  \n is so."
    assert find_quote(text, quote) == place


def test_nothing_can_be_quoted_from_nothing() -> None:
    assert find_quote("", "quote") is None


@SLOWLY
@given(TEXTS, st.data())
def test_whatever_stands_in_a_text_is_found_there_or_before(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    quote = text[start:end]
    place = find_quote(text, quote.replace("\n", " \t"))
    if not quote.strip():
        assert place is None
    else:
        assert place is not None
        assert text[slice(*place)].split() == quote.split()
        assert place[0] <= end - len(quote.lstrip())


@SLOWLY
@given(TEXTS, TEXTS)
def test_what_is_found_is_the_quote(text: str, quote: str) -> None:
    place = find_quote(text, quote)
    assert place is None or text[slice(*place)].split() == quote.split()


def test_every_sentence_of_a_text_is_found() -> None:
    sentences = split_sentences(SPEECH)
    places = [find_quote(SPEECH, sentence) for sentence in sentences]
    assert [place and " ".join(SPEECH[slice(*place)].split()) for place in places] == sentences
