"""May the stream go on from where it stood? Pure: stored progress and what the source says -> a decision.

Fails safe: whatever cannot be shown to be gapless is read anew. Rule epoch: a timeline that forked below what was
read, or another server, begins a new epoch, so that phantoms of the lost timeline are outranked. Next: `reader` acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdc.slots import SlotState
from walvec.contracts.errors import DecodeError
from walvec.contracts.position import format_lsn, parse_lsn
from walvec.definitions.model import SourceProgress


@dataclass(frozen=True, slots=True)
class Identity:
    """IDENTIFY_SYSTEM, the log's identity, and where each older timeline of this server's history ended."""

    system_identifier: str
    timeline: int
    log_identity: str
    database: str
    ends: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """`slot`: keep it, make it, or drop it and make it anew. `gap`: why all tables must be read again, None = no gap.

    `lost`: the gap is a lost slot, so the connection's policy decides. `epoch`: of all positions from now on.
    """

    slot: Literal["keep", "create", "recreate"]
    epoch: int
    gap: str | None = None
    lost: bool = False

    @property
    def fresh(self) -> bool:
        return self.slot != "keep"


def decide(stored: SourceProgress, slot: SlotState | None, now: Identity, highest: int) -> Decision:
    """`highest`: the highest LSN that this process, or the log, has seen of the stored timeline."""
    known = bool(stored.system_identifier)
    if known and stored.system_identifier != now.system_identifier:
        reason = f"the source is another server now (system identifier {now.system_identifier})"
        return Decision(_anew(slot), stored.epoch + 1, reason)
    if known and stored.timeline and stored.timeline != now.timeline:
        fork = dict(now.ends).get(stored.timeline)
        if fork is None or fork < max(stored.lsn, highest):
            at = "an unknown position" if fork is None else format_lsn(fork)
            reason = f"timeline {now.timeline} of the source forked at {at}, below what was read"
            return Decision(_anew(slot), stored.epoch + 1, reason)
    if slot is None or slot.lost or slot.database != now.database:
        if not stored.lsn:
            return Decision("create" if slot is None else "recreate", stored.epoch)
        if slot is None:
            return Decision("create", stored.epoch, "the replication slot was dropped", lost=True)
        return Decision("recreate", stored.epoch, f"the replication slot was lost ({slot.reason})", lost=True)
    if stored.lsn and stored.log_identity and stored.log_identity != now.log_identity:
        return Decision("keep", stored.epoch, "the log was lost and made anew")
    if stored.lsn < slot.confirmed and stored.lsn:
        reason = f"the slot was moved to {format_lsn(slot.confirmed)}, above what was stored"
        return Decision("keep", stored.epoch, reason)
    return Decision("keep", stored.epoch)


def _anew(slot: SlotState | None) -> Literal["create", "recreate"]:
    return "create" if slot is None else "recreate"


def parse_history(content: str) -> tuple[tuple[int, int], ...]:
    """A timeline history file: where each earlier timeline ended. Raises DecodeError."""
    ends = []
    for line in content.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            ends.append((int(words[0]), parse_lsn(words[1])))
        except (ValueError, IndexError) as e:
            raise DecodeError("a timeline history file that cannot be read.") from e
    return tuple(ends)
