"""A change that could not be processed, kept with its reason and replayable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from walvec.contracts.position import Position

LetterKind = Literal["provider", "decode", "store", "too_large"]
"""Who refused it: the provider its text, we its bytes, the store its values, the log its size."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`id` is 0 until stored. `key` is the canonical JSON object, or b"" where the record could not be read.

    `reason` holds the provider's or the store's own message. `position`: the change's, ZERO where it could not be read.
    `attempts`: failed ones. `created_ms`: milliseconds since 1970. `payload`: the record's value, or its head. One open
    letter per (table, generation, key): a newer one replaces the older and counts its attempts on.
    """

    vector_table_id: str
    generation: int
    key: bytes
    kind: LetterKind
    reason: str
    position: Position
    attempts: int = 1
    id: int = 0
    created_ms: int = 0
    payload: bytes = b""
