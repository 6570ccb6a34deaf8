"""Texts as vectors of length 1, in numpy. It must not know what they are compared for."""

from collections.abc import Callable
from functools import partial

import numpy as np
from tokenizers import Tokenizer

from bench.similar.weights import MINILM, WORDLLAMA, read_tensors

LAYERS, HEADS, EPSILON = 6, 12, 1e-12
Vector = np.ndarray
Tensors = dict[str, np.ndarray]
Embedder = Callable[[str], Vector]


def minilm() -> Embedder:
    """Give all-MiniLM-L6-v2: six layers of BERT, the mean of the tokens' vectors."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.no_padding()
    return partial(_encode, read_tensors(MINILM / "model.safetensors"), tokenizer)


def wordllama() -> Embedder:
    """Give WordLlama: the mean of a static vector a token."""
    tokenizer = Tokenizer.from_file(str(WORDLLAMA / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    table = read_tensors(WORDLLAMA / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]

    def embed(text: str) -> Vector:
        return _unit(table[tokenizer.encode(text, add_special_tokens=False).ids].astype(np.float32).mean(axis=0))

    return embed


def _encode(weights: Tensors, tokenizer: Tokenizer, text: str) -> Vector:
    ids = tokenizer.encode(text).ids
    names = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight")
    words, places, kinds = (weights[f"embeddings.{name}"] for name in names)
    states = _norm(weights, "embeddings.LayerNorm", words[ids] + places[: len(ids)] + kinds[0])
    for number in range(LAYERS):
        states = _layer(weights, f"encoder.layer.{number}", states)
    return _unit(states.mean(axis=0))


def _layer(weights: Tensors, name: str, states: Vector) -> Vector:
    mixed = _linear(weights, f"{name}.attention.output.dense", _attend(weights, f"{name}.attention.self", states))
    states = _norm(weights, f"{name}.attention.output.LayerNorm", mixed + states)
    wide = _gelu(_linear(weights, f"{name}.intermediate.dense", states))
    return _norm(weights, f"{name}.output.LayerNorm", _linear(weights, f"{name}.output.dense", wide) + states)


def _attend(weights: Tensors, name: str, states: Vector) -> Vector:
    tokens, width = states.shape
    query, key, value = (
        _linear(weights, f"{name}.{part}", states).reshape(tokens, HEADS, -1).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(width // HEADS)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.asarray((shares @ value).transpose(1, 0, 2).reshape(tokens, width))


def _linear(weights: Tensors, name: str, states: Vector) -> Vector:
    return np.asarray(states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def _norm(weights: Tensors, name: str, states: Vector) -> Vector:
    centred = states - states.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def _gelu(states: Vector) -> Vector:
    from scipy.special import erf

    return np.asarray(states * 0.5 * (1 + erf(states / np.sqrt(2))))


def _unit(vector: Vector) -> Vector:
    return np.asarray(vector / np.linalg.norm(vector))
