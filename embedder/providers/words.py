"""Texts -> summed token vectors of a static model, word by word: most words have been met before.

A static embedding is the mean of its tokens' vectors, and the tokenizer (BERT's: Devlin et al. 2019) cuts a word the
same way wherever it stands. So a word's sum is made once and kept. Law: the same vectors as the model's own `encode`,
within rounding; texts whose words are not plain ASCII are left to it. Next: `static`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# As the tokenizer's normalizer and pre-tokenizer do for ASCII: runs of letters and digits, each other sign by itself.
_words = re.compile(r"[a-z0-9]+|[^a-z0-9\s]").findall
# Control characters are dropped by the normalizer, not taken for white space: such texts go the long way.
_odd = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search
_MOST_WORDS = 24_576


class WordSums:
    """Sums by word for one model2vec model without token weights. Not safe for two threads at once."""

    def __init__(self, model: Any, most_words: int = _MOST_WORDS) -> None:
        self._model = model
        self._most = most_words
        self._places: dict[str, int] = {}
        self._sums = np.zeros((1024, model.embedding.shape[1]), np.float32)

    @staticmethod
    def knows(text: str) -> bool:
        return text.isascii() and _odd(text) is None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dims) float32 of unit length; a text without any known token is all zeros. Only texts it `knows`."""
        found = [_words(text.lower()) for text in texts]
        passing = self._learn(found)
        place, sums = self._places.__getitem__, self._sums
        out = np.zeros((len(texts), sums.shape[1]), np.float32)
        for words, row in zip(found, out, strict=True):
            np.add.reduce(sums[[*map(place, words)]], axis=0, out=row)
        for word in passing:
            del self._places[word]
        out /= np.linalg.norm(out, axis=1, keepdims=True) + np.float32(1e-32)
        return out

    def _learn(self, found: Sequence[list[str]]) -> list[str]:
        """Sums for all these words; returns those that are beyond the limit and must be forgotten again.

        Who comes first stays: frequent words come early (Zipf), and a rare one costs the same again when it returns.
        """
        new = list(set().union(*found) - self._places.keys())
        if not new:
            return new
        kept = len(self._places)
        if kept + len(new) > len(self._sums):
            grown = np.zeros(
                (max(kept + len(new), min(2 * len(self._sums), self._most)), self._sums.shape[1]), np.float32
            )
            grown[:kept] = self._sums[:kept]
            self._sums = grown
        tokens = self._model.tokenize(new)
        self._places.update(zip(new, range(kept, kept + len(new)), strict=True))
        self._sums[kept : kept + len(new)] = 0
        known = [n for n, ids in enumerate(tokens) if ids]
        if known:
            starts = np.cumsum([0, *(len(tokens[n]) for n in known[:-1])])
            vectors = self._model.embedding[[i for ids in tokens for i in ids]].astype(np.float32)
            self._sums[[kept + n for n in known]] = np.add.reduceat(vectors, starts, axis=0)
        return new[max(0, self._most - kept) :]
