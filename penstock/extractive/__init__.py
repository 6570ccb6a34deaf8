"""Summarises a text by its own sentences, without a model. It must not know why no model was asked."""

from penstock.extractive.summary import DEFAULT_MAX_WORDS, summarise

__all__ = ["DEFAULT_MAX_WORDS", "summarise"]
