"""A batch of vector records -> what a store has to do for it, per key. Pure; the adapters write it.

Law: the state after the plan, with every refused claim embedded in full at its own position, is the state after the
records one by one in any order. Next: `stores/memory.py` (the readable reference), `stores/pgvector_apply.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from walvec.contracts.position import Position
from walvec.contracts.vectors import VectorRecord


@dataclass(frozen=True, slots=True)
class Step:
    """One key: an upsert or delete, then a claim that is newer than it."""

    write: VectorRecord | None = None
    claim: VectorRecord | None = None

    @property
    def records(self) -> tuple[VectorRecord, ...]:
        return tuple(r for r in (self.write, self.claim) if r is not None)


@dataclass(frozen=True, slots=True)
class Plan:
    """`truncate` comes first: it only removes what is older than itself, and what is older is refused afterwards."""

    truncate: Position | None = None
    steps: list[Step] = field(default_factory=list)


def coalesce(records: Iterable[VectorRecord]) -> Plan:
    """Per key the newest write and the newest claim above it (rule collapse-position: newest by position, never the
    last in the log).

    Of several claims only the newest counts: it carries everything, so whether it is granted or sent back, the older
    ones are outdated.
    """
    truncate: Position | None = None
    writes: dict[bytes, VectorRecord] = {}
    claims: dict[bytes, VectorRecord] = {}
    for record in records:
        if record.op == "truncate":
            if truncate is None or record.position > truncate:
                truncate = record.position
            continue
        newest = claims if record.op == "metadata" else writes
        other = newest.get(record.key)
        if other is None or record.position > other.position:
            newest[record.key] = record
    steps = []
    for key, write in writes.items():
        claim = claims.pop(key, None)
        steps.append(Step(write, claim if claim is not None and claim.position > write.position else None))
    steps.extend(Step(None, claim) for claim in claims.values())
    return Plan(truncate, steps)
