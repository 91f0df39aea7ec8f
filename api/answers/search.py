"""Answers of a query."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.answers.parts import Answer


class Hit(Answer):
    """Both documented spellings of the score."""

    id: str = Field(examples=["4821"])
    """The row's key as text; of a key of several columns its JSON object."""
    key: dict[str, Any]
    """The row's key, by column."""
    chunk: int
    """Part of the row's text; 0 where texts are not cut."""
    score: float
    """Cosine similarity; 1 is the same direction."""
    similarity_score: float
    """The same."""
    metadata: dict[str, Any]
    """Columns of the row, by name."""
    embedded_text: str | None
    """What was embedded."""


class Found(Answer):
    results: list[Hit]
    """Best first."""
    query: str
    """As it was asked."""
    model: str
    """Model of the generation that answered."""
    total_results: int
    """Length of `results`."""
