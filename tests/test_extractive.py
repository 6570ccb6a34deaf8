"""A summary is made of the text's own sentences, in order, within its words, whatever the text is."""

import json
import re
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.extractive import DEFAULT_MAX_WORDS, summarise
from penstock.extractive.sentences import count_words, split_sentences

SAMPLES = Path(__file__).parents[1] / "samples"
# What the agencies and the RFCs' authors wrote themselves, taken out of the samples; the same origins and licences.
REFERENCES = json.loads((Path(__file__).parent / "fixtures" / "documents" / "reference_summaries.json").read_text())
SPEECH = (SAMPLES / "state-of-the-union-2000.txt").read_text()


def rouge_1(candidate: str, reference: str) -> float:
    """Give ROUGE-1 F1 over lower-case alphanumeric tokens (Lin, 2004)."""
    left, right = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (candidate, reference))
    overlap = sum((left & right).values())
    return 2 * overlap / (sum(left.values()) + sum(right.values()))


def test_a_summary_is_made_of_whole_sentences_in_their_order() -> None:
    sentences, flat = split_sentences(SPEECH), " ".join(split_sentences(SPEECH))
    summary = summarise(SPEECH)
    taken = [flat.index(sentence) for sentence in split_sentences(summary)]
    assert set(split_sentences(summary)) <= set(sentences)
    assert taken == sorted(taken)
    assert 80 <= len(summary.split()) <= DEFAULT_MAX_WORDS


def test_the_same_text_gives_the_same_summary() -> None:
    assert summarise(SPEECH) == summarise(SPEECH)


def test_summaries_are_nearer_to_those_of_the_authors_than_the_first_words_are() -> None:
    summaries, openings = [], []
    for name, reference in REFERENCES.items():
        text = (SAMPLES / name).read_text()
        summaries.append(rouge_1(summarise(text), reference))
        openings.append(rouge_1(" ".join(text.split()[:DEFAULT_MAX_WORDS]), reference))
    assert len(summaries) == 7
    assert fmean(summaries) > fmean(openings)


def test_code_is_not_quoted() -> None:
    code = "```rust\n" + "let summary_of_code = answer(code, code, code);\n" * 30 + "```\n"
    text = "The code sends one answer to each of its readers. " * 20
    assert "let" not in summarise(code + text, max_words=30).split()


NOTICE = """DEPARTMENT OF TRANSPORTATION

Federal Aviation Administration

14 CFR Part 71

[Docket No. FAA-2017-0217]

Amendment of Class E Airspace; Moses Lake

AGENCY:
The administration.

The airspace at Moses Lake is amended. """
PROSE = "The amendment changes class E airspace. " * 40


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (NOTICE, "Amendment of Class E Airspace; Moses Lake"),
        ("# Amendment of airspace\n\n## Motivation\n\n", "# Amendment of airspace"),
        ("- Feature Name: amendment of airspace\n- Start Date: today\n\n## Class E airspace\n\n", None),
        ("Dear reader, whoever you are\n\n", None),
        ("The amendment is a sentence about airspace. ", None),
        ("", None),
    ],
)
def test_a_summary_begins_with_the_title_if_there_is_one(text: str, title: str | None) -> None:
    summary = summarise(text + PROSE)
    assert summary.startswith(f"{title}\n\nThe a" if title else "The amendment")


def test_below_a_title_one_giant_sentence_is_cut_too() -> None:
    summary = summarise("Amendment of airspace\n\n" + "airspace amendment " * 500, max_words=20)
    assert summary == "Amendment of airspace\n\n" + " ".join(["airspace amendment"] * 8) + " airspace"


def test_a_list_of_lines_has_no_title() -> None:
    names = [f"{chr(97 + number // 26)}{chr(97 + number % 26)}" * 2 for number in range(60)]
    lines = "".join(f"{name} and then {name};\n" for name in names)
    assert "\n" not in summarise(lines, max_words=40)


def test_a_title_that_takes_most_of_the_words_is_left_out() -> None:
    assert summarise(NOTICE + PROSE, max_words=22).startswith("Amendment of Class E Airspace; Moses Lake\n\n")
    assert summarise(NOTICE + PROSE, max_words=20).startswith("The a")


@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000"])
def test_nothing_gives_nothing(text: str) -> None:
    assert not summarise(text)


def test_a_short_text_comes_back_as_it_is() -> None:
    assert summarise("One line.\n\nAnother  line.\n") == "One line.\n\nAnother  line."


def test_one_giant_sentence_is_cut() -> None:
    assert summarise("word " * 50_000, max_words=7) == " ".join(["word"] * 7)


def test_a_text_without_spaces_is_cut_too() -> None:
    assert summarise("x" * 1_000_000, max_words=2) == "x" * 200


@pytest.mark.parametrize("text", ["?!. " * 500, "12 34. " * 500, "the of and. " * 500, "\u2603 " * 500])
def test_a_text_that_says_nothing_still_gives_at_most_the_words_asked_for(text: str) -> None:
    assert 1 <= len(summarise(text, max_words=20).split()) <= 20


def test_chinese_counts_by_characters_and_splits_at_its_own_full_stops() -> None:
    text = "".join(f"第{n}条规定了数据的保护方式。人人都有权利保护自己的数据。" for n in "一二三四五六七八九十")
    summary = summarise(text, max_words=40)
    assert summary.endswith("。")
    assert 10 <= count_words(summary.replace("。", "")) <= 40


@pytest.mark.parametrize("max_words", [0, -1])
def test_no_words_at_all_is_refused(max_words: int) -> None:
    with pytest.raises(ValueError, match="max_words must be at least 1"):
        summarise("text", max_words=max_words)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One ends. Two ends! Three? Yes.", ["One ends.", "Two ends!", "Three?", "Yes."]),
        ("The U.S. Congress met Dr. Smith.", ["The U.S. Congress met Dr. Smith."]),
        ("See No. 5 and Sec. 3. It is so.", ["See No. 5 and Sec. 3.", "It is so."]),
        ("He came at 5 p.m. Monday, i.e. late.", ["He came at 5 p.m. Monday, i.e. late."]),
        ("It cost $3.50 a day. J. Doe paid.", ["It cost $3.50 a day.", "J. Doe paid."]),
        ('"Stop." (He did.) Then', ['"Stop."', "(He did.)", "Then"]),
        ("# Title\nA line that\nwraps here.", ["# Title", "A line that wraps here."]),
        ("Items\n- item one\n- item two", ["Items", "- item one", "- item two"]),
        ("AGENCY:\nThe agency\nACTION:\nFinal rule", ["AGENCY:", "The agency ACTION:", "Final rule"]),
        ("你好。再见\uff01", ["你好。", "再见\uff01"]),
        ("", []),
    ],
)
def test_sentences_split_where_people_would(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=600), st.integers(1, 40))
def test_any_text_gives_at_most_the_words_asked_for(text: str, max_words: int) -> None:
    assert count_words(summarise(text, max_words=max_words)) <= max_words
