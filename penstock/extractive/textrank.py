"""Chooses the sentences that say most. It must not know how a text was split into them.

TextRank over TF-IDF sentence vectors (Mihalcea and Tarau, 2004); the similarity matrix X X^T is never formed, power
iteration multiplies by X^T and then by X. Likeness to the opening of the text is the prior of position, and likeness to
the title says what the text is about (Edmundson, 1969). Sentences are then taken by maximal marginal relevance
(Carbonell and Goldstein, 1998) until the words are spent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from penstock.extractive.sentences import TERM, count_words, is_prose

Floats = NDArray[np.float64]
Integers = NDArray[np.int_]
Booleans = NDArray[np.bool_]
Sparse = Any  # scipy's sparse matrices have no types

_DAMPING = 0.85
_ITERATIONS = 25
_POSITION_WEIGHT = 0.4
_OPENING_WORDS = 30.0
_TITLE_WEIGHT = 1.0
_RELEVANCE_WEIGHT = 0.6
_SENTENCE_WORDS = range(5, 81)


def choose(sentences: Sequence[str], max_words: int, *, title: int | None = None) -> list[int]:
    """Give the indexes of the sentences to take, ascending; none when no sentence fits or none has a term.

    `title` is the one that names the text: it is not taken, and likeness to it counts.
    """
    vectors = _vectorise(sentences)
    if vectors is None:
        return []
    words = np.array([count_words(sentence) for sentence in sentences])
    scores = (1 - _POSITION_WEIGHT) * _rank(vectors) + _POSITION_WEIGHT * _likeness_to_opening(vectors, words)
    prose = np.array([is_prose(sentence) for sentence in sentences])
    usual = (words >= _SENTENCE_WORDS.start) & (words < _SENTENCE_WORDS.stop)
    fits = words <= max_words
    if title is not None:
        scores += _TITLE_WEIGHT * (vectors @ vectors[title].T).toarray().ravel()
        fits[title] = False
    candidates = prose & usual & fits
    return _take(vectors, scores, words, candidates if candidates.any() else fits, max_words)


def _vectorise(sentences: Sequence[str]) -> Sparse | None:
    """Give one TF-IDF row of length 1 a sentence, or None when there is not one term in all of them."""
    for stop_words in ("english", None):
        vectorizer = TfidfVectorizer(stop_words=stop_words, sublinear_tf=True, token_pattern=TERM)
        try:
            return vectorizer.fit_transform(sentences)
        except ValueError:  # "empty vocabulary": nothing but stop words, or nothing at all
            continue
    return None


def _rank(vectors: Sparse) -> Floats:
    """Give each sentence's TextRank, the highest being 1."""
    count: int = vectors.shape[0]
    weights = vectors @ (vectors.T @ np.ones(count))
    weights[weights == 0] = 1
    ranks = np.full(count, 1 / count)
    for _ in range(_ITERATIONS):
        ranks = (1 - _DAMPING) / count + _DAMPING * (vectors @ (vectors.T @ (ranks / weights)))
    return _scaled(ranks)


def _likeness_to_opening(vectors: Sparse, words: Integers) -> Floats:
    """Give each sentence's likeness to the first words of the text (title, first lines), the highest being 1."""
    words_before = np.cumsum(words) - words
    return _scaled(vectors @ (vectors.T @ np.exp(-words_before / _OPENING_WORDS)))


def _scaled(values: Floats) -> Floats:
    scaled: Floats = values / (values.max() or 1.0)
    return scaled


def _take(vectors: Sparse, scores: Floats, words: Integers, candidates: Booleans, max_words: int) -> list[int]:
    """Take the most relevant sentence that is least like those taken, again and again, while one fits."""
    taken: list[int] = []
    redundancy = np.zeros(len(scores))
    while candidates.any():
        relevance = _RELEVANCE_WEIGHT * scores - (1 - _RELEVANCE_WEIGHT) * redundancy
        best = int(np.where(candidates, relevance, -np.inf).argmax())
        taken.append(best)
        max_words -= int(words[best])
        candidates[best] = False
        candidates &= words <= max_words
        redundancy = np.maximum(redundancy, (vectors @ vectors[best].T).toarray().ravel())
    return sorted(taken)
