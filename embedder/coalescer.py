"""Several changes of one key in a batch become one. Pure.

Rule collapse-position: the highest position stays, never the last in the log (a backfill's row with a low stamp may
come after a newer update); a forced one wins a tie. The result keeps the `before` of its oldest member, and is forced
if any member is. Next: `planner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from walvec.contracts.changes import ALL_GENERATIONS, Change


def coalesce(changes: Sequence[Change], generation: int, fillable: frozenset[str] = frozenset()) -> list[Change]:
    """Changes of one generation: `t` records as they came, then one per key in the order of first appearance.

    Generation 0 on a record means all that were routed then (rule since-routed); records of others are left out.
    `fillable`: columns whose value in an old image can stand for the same value in `after` (see `Planner.fillable`).
    """
    out: list[Change] = []
    single: dict[bytes, Change] = {}
    several: dict[bytes, list[Change]] = {}
    first = generation == 1  # spares a call for each change of a table that was never rebuilt
    for change in changes:
        if not (first and change.generation == ALL_GENERATIONS) and not change.concerns(generation):
            continue
        if change.op == "t":
            out.append(change)
            continue
        if change.key not in single:
            single[change.key] = change
        else:
            several.setdefault(change.key, [single[change.key]]).append(change)
    for key, members in several.items():
        single[key] = collapse(members, fillable)
    out.extend(single.values())
    return out


def collapse(members: Sequence[Change], fillable: frozenset[str] = frozenset()) -> Change:
    """One change that stands for all members (at least one) of one key."""
    newest = members[0]
    oldest = members[0]
    for member in members[1:]:
        if (member.position, member.force) >= (newest.position, newest.force):
            newest = member
        if member.position < oldest.position:
            oldest = member
    force = any(m.force for m in members)
    after, unchanged, before = newest.after, newest.unchanged, oldest.before
    if unchanged and newest.position != oldest.position:
        # Unchanged means: as in the version just before. Only its own old image gives that value; the oldest member's
        # is older, and so may be another member's `after` when the batch begins in the middle of a replay.
        own = newest.before or {}
        filled = {c: own[c] for c in unchanged if c in own and c in fillable}
        if filled:
            after = {**(after or {}), **filled}
        unchanged = tuple(c for c in unchanged if c not in filled)
        if before is not None:
            before = {c: v for c, v in before.items() if c not in unchanged}
        if any(m.op == "d" or any(c not in m.unchanged for c in unchanged) for m in members) and unchanged:
            force = True  # no proof any more that the text is the store's: it is embedded in full
    return replace(newest, after=after, unchanged=unchanged, before=before, force=force)
