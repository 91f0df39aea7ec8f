"""The total order of one connection's changes; the version that every store guards with."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """`(epoch, commit LSN, ordinal)`, compared left to right.

    Ordinals of streamed changes count from 1 within their transaction. Ordinal 0 belongs to stamps, the positions of
    rows that were read by SELECT (rule stamp-ordinal: a logical message's LSN is where the next COMMIT may start, so
    a stamp must stay below every change of a transaction that commits at the same LSN). The epoch outranks the LSN
    (rule epoch): it grows when the source's timeline forked below what was read.
    """

    epoch: int
    lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{self.epoch}:{format_lsn(self.lsn)}:{self.ordinal}"


ZERO = Position(0, 0, 0)


def stamp(epoch: int, lsn: int) -> Position:
    """The position of a row read by SELECT (rule stamp-ordinal)."""
    return Position(epoch, lsn, 0)


def format_lsn(lsn: int) -> str:
    """`16B3748` -> `0/16B3748`, as Postgres writes a pg_lsn."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """The inverse of `format_lsn`. Raises ValueError on anything else."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not a pg_lsn: {text!r}")
    return (int(high, 16) << 32) | int(low, 16)
