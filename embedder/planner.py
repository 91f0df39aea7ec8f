"""A change becomes what must be done for one generation of its table. Pure.

In order (DESIGN: never pay twice): the old image, or all embedding columns unchanged, proves the text equal -> Claim;
else Embed, for which the worker still looks for a vector with the same content hash. A needed column that is not
known -> Reread. Rule claim-text: a claim always carries a known text, its hash and all metadata. A forced change
is never claimed. Next: `work` resolves rows against store and source, `dispatch` sends what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from walvec.contracts.changes import Change
from walvec.contracts.position import Position
from walvec.contracts.sources import ReadRow
from walvec.definitions.model import Generation


@dataclass(slots=True, eq=False)
class Row:
    """A row with a text: what an upsert or a claim of it says."""

    key: bytes
    position: Position
    generation: int
    text: str
    hash: str
    metadata: Mapping[str, Any]
    exact: Mapping[str, str]
    commit_ms: int
    force: bool
    fresh: bool
    """Op c: no older version of the key is expected in the store."""


@dataclass(slots=True, eq=False)
class Claim:
    """The text is proved equal to the version before: no provider call."""

    row: Row


@dataclass(slots=True, eq=False)
class Embed:
    row: Row


@dataclass(slots=True, eq=False)
class Delete:
    """Deleted, or nothing left to embed (an existing vector goes)."""

    key: bytes
    position: Position
    generation: int
    commit_ms: int


@dataclass(slots=True, eq=False)
class Truncate:
    position: Position
    generation: int
    commit_ms: int


@dataclass(slots=True, eq=False)
class Reread:
    """These columns must be read from the source, once the change's transaction is visible (rule toast-visible)."""

    change: Change
    columns: tuple[str, ...]
    proved: bool
    """All embedding columns are unchanged: what is read is claimed, not embedded."""


Plan = Claim | Embed | Delete | Truncate | Reread

_NOTHING: dict[str, Any] = {}


@dataclass(slots=True)
class Planner:
    """Plans for one generation; what its definition says is looked up once."""

    generation: Generation
    provider_kind: str
    _embedded: tuple[str, ...] = field(init=False)
    _metadata: tuple[str, ...] = field(init=False)
    fillable: frozenset[str] = field(init=False)
    """Columns whose value in an old image (always a text) can stand for the value in `after` (typed for metadata)."""

    def __post_init__(self) -> None:
        g = self.generation
        self._spec = g.text_spec
        self._hash = g.hasher(self.provider_kind)
        self._embedded = g.embedding_columns
        self._metadata = tuple(dict.fromkeys(c.name for c in g.metadata_columns))
        self.fillable = frozenset(
            n for n in self._embedded if n not in self._metadata or g.wire_codec(n).name in ("text", "numeric", "bool")
        )

    _spec: Any = field(init=False)
    _hash: Any = field(init=False)

    def plan(self, change: Change) -> Plan:
        op = change.op
        if op == "t":
            return Truncate(change.position, self.generation.number, change.commit_ms)
        if op == "d":
            return self._delete(change)
        if change.text is not None:
            return self._row(change, change.text, proved=False)
        if change.unchanged:
            return self._partial(change)
        values = self._texts(change)
        proved = op == "u" and change.before is not None and not change.force and self._equal(change, values)
        return self._finish(change, values, proved)

    def complete(self, plan: Reread, found: ReadRow) -> Plan:
        """The plan once the row was read. All of it is taken, since it may be newer than the change: a mix of two
        versions would be a text that never was, shown and paid for. The position stays the change's; what made the
        row newer follows.
        """
        whole = replace(plan.change, after=dict(found.after), exact=dict(found.exact), unchanged=())
        return self._finish(whole, self._texts(whole), plan.proved)

    def _partial(self, change: Change) -> Plan:
        """Some columns are unchanged TOAST: their values come from the old image, else from the source."""
        after = dict(change.after or {})
        before = change.before or _NOTHING
        for column in change.unchanged:
            if column not in after and column in before and column in self.fillable:
                after[column] = before[column]
        same = all(c in change.unchanged for c in self._embedded)
        missing = tuple(c for c in dict.fromkeys((*self._embedded, *self._metadata)) if c not in after)
        if missing:
            proved = same and change.op == "u" and not change.force
            return Reread(replace(change, after=after, unchanged=()), missing, proved)
        whole = replace(change, after=after)
        values = self._texts(whole)
        proved = change.op == "u" and not change.force and (same or self._equal(whole, values))
        return self._finish(whole, values, proved)

    def _texts(self, change: Change) -> dict[str, str | None]:
        after = change.after
        if after is None:
            return dict.fromkeys(self._embedded)
        values: dict[str, str | None] = {}
        exact = change.exact
        for name in self._embedded:
            value = after.get(name)
            if exact or (value is not None and type(value) is not str):
                values[name] = change.text_of(name) if name in after or name in exact else None
            else:
                values[name] = value
        return values

    def _equal(self, change: Change, values: Mapping[str, str | None]) -> bool:
        """The old image proves the text equal; a column that it lacks proves nothing unless it is unchanged."""
        before = change.before
        if before is None:
            return False
        for name in self._embedded:
            if name in change.unchanged:
                continue
            if name not in before or (change.old_text_of(name) or None) != (values[name] or None):
                return False
        return True

    def _finish(self, change: Change, values: Mapping[str, str | None], proved: bool) -> Plan:
        text = self._spec.compose(values)
        if text is None:
            return self._delete(change)
        return self._row(change, text, proved)

    def _row(self, change: Change, text: str, proved: bool) -> Claim | Embed:
        after = change.after or _NOTHING
        exact = change.exact
        row = Row(
            change.key,
            change.position,
            self.generation.number,
            text,
            self._hash(text),
            {name: after.get(name) for name in self._metadata},
            {n: exact[n] for n in self._metadata if n in exact} if exact else _NOTHING,
            change.commit_ms,
            change.force,
            change.op == "c",
        )
        return Claim(row) if proved else Embed(row)

    def _delete(self, change: Change) -> Delete:
        return Delete(change.key, change.position, self.generation.number, change.commit_ms)
