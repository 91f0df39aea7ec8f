"""A chunk's stamp: what the rows of one SELECT may claim to be. Pure.

Law: a stamp may be too low, never too high: too low is harmless (the stream carries every later change), too high
overwrites newer state. What cannot be judged is read again. Next: `backfill` and `rereads` use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from walvec.contracts.position import Position, stamp
from walvec.contracts.snapshots import XidSnapshot


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of one SELECT. `session`: the stream's when the watermark was emitted; `mark`: the watermark's LSN,
    emitted before the snapshot was taken; `snapshot`: of the transaction that read the rows (rule one-snapshot)."""

    session: int
    mark: int
    snapshot: XidSnapshot


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """The chunk does not count. `horizon`: the snapshot must see all transactions below it, 0 otherwise."""

    reason: str
    horizon: int = 0


def strict_horizon(*, fresh: bool, session_horizon: int, table_horizon: int) -> int:
    """What ran below it may have done things that are never streamed: no exception for delivered transactions."""
    return max(session_horizon if fresh else 0, table_horizon)


def judge(
    reading: Reading,
    *,
    session: int,
    epoch: int,
    delivered: Iterable[tuple[int, int]],
    horizon: int,
) -> Position | ReadAgain:
    """The stamp of a chunk whose watermark the stream has delivered, or why it must be read again.

    `delivered`: (xid, commit LSN) of every transaction delivered in this session that some snapshot since the chunk's
    may not see. `horizon`: see `strict_horizon`.
    """
    # rule memory: what an earlier session delivered is forgotten, so nothing can be said of this chunk
    if session != reading.session:
        return ReadAgain("the stream was restarted")
    # rule start-horizon: what an older transaction did may be neither streamed nor seen
    if reading.snapshot.xmin < horizon:
        return ReadAgain("transactions older than the start of the stream are still open", horizon)
    # rule visibility, rule snapshot-xmax: below the first delivered transaction that the snapshot does not see
    sees = reading.snapshot.sees
    lsn = reading.mark
    for xid, commit_lsn in delivered:
        if commit_lsn < lsn and not sees(xid):
            lsn = commit_lsn
    return stamp(epoch, lsn)  # rule stamp-ordinal


def outranks(found: Position, letter: Position) -> bool:
    """Whether a row read at this stamp may settle a dead letter (rule replay-above): with a tie, or an older row, the
    letter's own delete would win, the letter be gone and the row missing."""
    return found > letter
