"""Answers of a query."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

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
    embedded_text: str | SkipJsonSchema[None] = None
    """What was embedded; there unless `include` leaves it out."""
    vector: list[float] | SkipJsonSchema[None] = None
    """The row's vector; there if `include` asks for it."""


class Found(Answer):
    results: list[Hit]
    """Best first."""
    query: str | None
    """As it was asked; null where a vector was given."""
    model: str
    """Model of the generation that answered."""
    total_results: int
    """Length of `results`."""
    next_cursor: str | None
    """`cursor` of the next page; null on the last one."""
    has_more: bool
    """Whether there is a next page."""
    generation: int
    """Generation that answered."""
    as_of_lsn: str | None = Field(examples=["0/16B3748"])
    """Everything committed at the source up to here is found; null where that is not known yet."""
    staleness_secs: float | None
    """Everything committed until so many seconds ago is found; null where that is not known yet."""
    freshness_reason: str | None
    """Why freshness is not known, or does not get better."""
