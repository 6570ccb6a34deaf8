"""ROUGE-1 is worked out as its author does, and a text never holds the summary that it is measured against."""

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import rouge
from bench.report import Report
from penstock.extractive import summarise
from tests.system.corpus import needs_documents

words = st.lists(st.sampled_from(["a", "b", "C", "d1", "\u00e9"]), max_size=12).map(" ".join)


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 100.0),
        ("The CAT, sat!", "the-cat (sat)", 100.0),
        ("police kill the gunman", "police killed the gunman", 75.0),
        ("the the the the", "the cat", 100 / 3),
        ("one two", "three four", 0.0),
        ("a b c d", "a", 40.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", "", 0.0),
        ("\u4f60\u597d", "\u4f60\u597d", 0.0),
    ],
)
def test_rouge_1_is_the_f1_of_clipped_unigrams(candidate: str, reference: str, expected: float) -> None:
    assert rouge.rouge_1(candidate, reference) == pytest.approx(expected)


def test_stems_stand_for_words_of_any_ending() -> None:
    assert rouge.rouge_1("agencies amended", "the agency amends", is_stemmed=True) == 80.0
    assert rouge.rouge_1("agencies amended", "the agency amends") == 0.0


@settings(deadline=None)
@given(words, words)
def test_rouge_1_is_the_same_both_ways_and_in_any_order(left: str, right: str) -> None:
    value = rouge.rouge_1(left, right)
    assert 0 <= value <= 100
    assert rouge.rouge_1(right, left) == value
    assert rouge.rouge_1(" ".join(reversed(left.split())), right) == value


def test_leads_are_the_beginning_of_the_text() -> None:
    text = "TITLE\n\nSUMMARY:\n\n" + " ".join(f"This is sentence {number}." for number in range(50))
    assert rouge.first_words(text) == " ".join(text.split()[:80])
    assert rouge.first_sentences(text) == text[: text.index(" This is sentence 3.")]
    assert rouge.first_words_of_prose(text).startswith("This is sentence 0. This is sentence 1.")
    assert len(rouge.first_words_of_prose(text).split()) == 80


@pytest.mark.parametrize("text", ["Before. An  abstract,\nhere! After.", "an abstract here"])
def test_a_text_that_holds_its_reference_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"id": "one", "text": text, "reference_summary": "An abstract here."}) + "\n")
    with pytest.raises(ValueError, match="the text of 'one' holds its reference"):
        rouge.load(path)


def test_the_means_stand_beside_those_of_the_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "OTHER_LENGTHS", (1,))
    documents = [rouge.Document("The cat sat.", "the cat sat"), rouge.Document("A dog ran.", "a bird flew")]
    report = Report("rouge")
    rouge.add(report, rouge.Corpus("set", "set.jsonl", ">= 60.0"), documents)
    assert [(measure.name, measure.value, measure.must) for measure in report.measures] == [
        ("rouge.set.extractive", 66.67, ">= 60.0"),
        ("rouge.set.extractive.stemmed", 66.67, None),
        ("rouge.set.extractive.1_words", 50.0, None),
    ]
    assert set(report.measures[0].beside.values()) == {66.67}
    assert set(report.measures[0].beside) == {"first_80_words", "first_3_sentences", "first_80_words_of_prose"}


@needs_documents
@pytest.mark.parametrize("corpus", rouge.CORPORA, ids=lambda corpus: corpus.name)
def test_extractive_summaries_are_ahead_of_every_lead(corpus: rouge.Corpus) -> None:
    documents = rouge.load(rouge.DATA / corpus.file)[:: rouge.EVERY_IN_SHORT]
    ours = fmean(rouge.scores(documents, summarise))
    assert all(ours > fmean(rouge.scores(documents, lead)) for lead in rouge.LEADS.values())


@needs_documents
def test_a_short_run_tells_whether_the_bounds_hold_and_writes_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.report.RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["rouge", "--short", "--json"])
    monkeypatch.setattr(rouge, "OTHER_LENGTHS", ())
    code = rouge.main()
    measures = json.loads(capsys.readouterr().out)["measures"]
    assert [(measure["name"], measure["must"]) for measure in measures] == [
        ("rouge.federal_register.extractive", ">= 40.0"),
        ("rouge.federal_register.extractive.stemmed", None),
        ("rouge.rfc.extractive", ">= 32.2"),
        ("rouge.rfc.extractive.stemmed", None),
    ]
    assert code == (0 if all(measure["holds"] for measure in measures) else 1)
    assert not list(tmp_path.iterdir())
