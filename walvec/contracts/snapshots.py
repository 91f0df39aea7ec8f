"""Which transactions a snapshot sees: `pg_current_snapshot()` as a value.

PostgreSQL manual, System Information Functions, "Transaction ID and Snapshot Information Functions".
"""

from __future__ import annotations

from dataclasses import dataclass

_WRAP = 1 << 32


@dataclass(frozen=True, slots=True)
class XidSnapshot:
    """`xmin:xmax:xip,…` with 64-bit ids. All below `xmin` are finished and seen."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> XidSnapshot:
        """Raises ValueError on anything but pg_snapshot's text."""
        low, high, running = text.split(":")
        return cls(int(low), int(high), frozenset(int(x) for x in running.split(",") if x))

    def widen(self, xid: int) -> int:
        """A 32-bit id of the stream as a 64-bit id: the one nearest to this snapshot's xmax."""
        wide = (self.xmax & ~(_WRAP - 1)) | (xid & (_WRAP - 1))
        if wide - self.xmax > _WRAP // 2:
            return wide - _WRAP
        if self.xmax - wide > _WRAP // 2:
            return wide + _WRAP
        return wide

    def sees(self, xid: int) -> bool:
        """False for what is running and for all at or above xmax (rule snapshot-xmax: a transaction that waits for a
        synchronous standby is usually not *listed*). `xid` may be 32-bit; 0 (no transaction) is always seen."""
        if xid == 0:
            return True
        wide = self.widen(xid)
        return wide < self.xmax and wide not in self.running
