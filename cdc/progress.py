"""Transactions and outstanding appends -> the LSN that may be confirmed. Pure.

Rule confirm-durable: an LSN is confirmed only when every record of every transaction that ends at or below it is
durable in the log. Next: `cdc.publisher` drives it, `cdc.reader` stores and confirms what it allows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Batch:
    """Appends that went out together, and how far the stream was complete when they did."""

    lsn: int
    outstanding: int


@dataclass(slots=True)
class Progress:
    """`durable` is what may be confirmed. It never falls, and is never above what was received."""

    durable: int = 0
    _reached: int = 0
    _held: bool = False
    _batches: deque[_Batch] = field(default_factory=deque)

    def reached(self, lsn: int, *, held: bool) -> None:
        """The stream was received up to the end of a transaction (or a keepalive between two).

        `held`: records of it are still in hand, in no append yet.
        """
        self._reached = max(self._reached, lsn)
        self._held = held
        self._settle()

    def sent(self, appends: int) -> _Batch:
        """All records in hand went out as `appends` appends; call `done` with the ticket for each that is durable."""
        batch = _Batch(self._reached, appends)
        self._batches.append(batch)
        self._held = False
        return batch

    def done(self, batch: _Batch) -> None:
        batch.outstanding -= 1
        while self._batches and self._batches[0].outstanding == 0:
            self.durable = max(self.durable, self._batches.popleft().lsn)
        self._settle()

    @property
    def outstanding(self) -> int:
        """Batches in flight."""
        return len(self._batches)

    def _settle(self) -> None:
        if not self._held and not self._batches:
            self.durable = max(self.durable, self._reached)
