"""The short way through the static model gives what the model itself gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.providers.static import _load
from embedder.providers.words import WordSums

ODD = [
    "Hello, world!", "under_score --dash-- a.b.c 3.14159 e-mail@host (x)[y]{z}", "\ttabs\nand\r\nlines  ",
    "a" * 100, "a" * 101, "x" * 5000, "UPPER lower MiXeD", "!!!", "don't can't I'm", "`~^|<>\\\"'",
    "0x1F 10,000 1e-5 v1.2.3-rc4+build", " ", "unbelievable antidisestablishmentarianism qzxv",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return _load("minilm-static-256")[0]


def test_odd_texts(model: Any) -> None:
    assert all(WordSums.knows(t) for t in ODD)
    np.testing.assert_allclose(WordSums(model).encode(ODD), model.encode(ODD, max_length=None), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(max_codepoint=0x7F, exclude_categories=("Cc",)), max_size=60), min_size=1))
def test_any_ascii_text(texts: list[str]) -> None:
    model, words = _load("minilm-static-256")
    np.testing.assert_allclose(words.encode(texts), model.encode(texts, max_length=None), atol=1e-6)


@pytest.mark.parametrize("text", ["caf\u00e9", "\u65e5\u672c", "a\x00b", "a\x0bb", "bell\x07", "\x7f", "\u2003"])
def test_other_texts_are_left_to_the_model(text: str) -> None:
    assert not WordSums.knows(text)


def test_a_full_memory_of_words_keeps_its_bound(model: Any) -> None:
    words = WordSums(model, most_words=40)
    texts = [f"word{n} shop {n * 7919} lamp" for n in range(30)]
    wanted = model.encode(texts, max_length=None)
    for at in (*range(0, 30, 5), *range(0, 30, 10)):
        np.testing.assert_allclose(words.encode(texts[at : at + 5]), wanted[at : at + 5], atol=1e-6)
    np.testing.assert_allclose(words.encode(texts), wanted, atol=1e-6)
    assert len(words._places) == 40
