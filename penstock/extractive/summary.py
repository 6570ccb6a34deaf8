"""The door of the extractive summary: what is short, what is cut, what is chosen. It must not know how to rank."""

from penstock.extractive.sentences import count_words, cut, split_sentences, without_code
from penstock.extractive.title import find_title

DEFAULT_MAX_WORDS = 100
"""A balance: ROUGE-1 on rules and notices is flat from 90 to 120 words, on design documents it falls with length."""

TITLE_SHARE = 3
"""A title that takes more than this part of the words is left out."""


def summarise(text: str, *, max_words: int = DEFAULT_MAX_WORDS) -> str:
    """Give the title of `text`, if it has one, and sentences in their order, of at most `max_words` words in all.

    A text that is short enough comes back as it is, and one that is a single endless sentence is cut. The same text
    gives the same summary. Raises ValueError for a `max_words` under 1.
    """
    if max_words < 1:
        raise ValueError(f"max_words must be at least 1, not {max_words}")
    text = text.strip()
    if count_words(text, stop_at=max_words + 1) <= max_words:
        return text
    from penstock.extractive import textrank  # late: it loads scikit-learn, a second or more

    sentences = split_sentences(without_code(text)) or split_sentences(text)
    title = find_title(sentences)
    heading = "" if title is None else sentences[title]
    if count_words(heading) * TITLE_SHARE > max_words:
        title, heading = None, ""
    max_words -= count_words(heading)
    chosen = textrank.choose(sentences, max_words, title=title)
    body = " ".join(sentences[index] for index in chosen)
    if not body:
        body = cut(" ".join(sentence for index, sentence in enumerate(sentences) if index != title), max_words)
    return "\n\n".join(part for part in (heading, body) if part)
