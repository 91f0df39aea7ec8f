"""One committed row change as the embedder sees it. Written by `cdc`, carried by `wire`, read by the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from walvec.contracts.position import Position

Op = Literal["c", "u", "d", "r", "t"]
Json = Any  # what orjson makes of a JSON value

ALL_GENERATIONS = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A record of `<table>.changes`.

    `op`: c created, u updated, d deleted, r read (backfill, replay, claim sent back), t truncated: rows older than
    `position` are gone (also the sweep's marker). `key` is the canonical JSON object, b"" for t.
    `after`: typed JSON of the used columns, None for d and t; columns in `unchanged` are absent (an unchanged TOAST
    value is not known, which is not NULL). `before`: embedding columns of the old image where it is known, else None.
    `exact`: Postgres texts of those columns whose JSON form cannot give them back.
    `text`: the composed text of a claim that was sent back; then `after` has no embedding-only columns.
    `newest`: the newest generation that was defined when the record was written, 0 = not told: who does not know it
    yet must not take the record for done (rule known-generation).
    `xid`: 32-bit id of the transaction, 0 when read. `commit_ms`: commit time, milliseconds since 1970.
    """

    op: Op
    position: Position
    key: bytes
    after: Mapping[str, Json] | None = None
    before: Mapping[str, Json] | None = None
    exact: Mapping[str, str] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    generation: int = ALL_GENERATIONS
    force: bool = False
    text: str | None = None
    newest: int = 0
    xid: int = 0
    commit_ms: int = 0

    def concerns(self, generation: int) -> bool:
        """Rule since-routed: a record of all generations is for those that were routed when it was written, up to
        `newest`. A younger one has its rows from a backfill that began later, and may use columns that are not in it.
        """
        return self.generation == generation or (
            self.generation == ALL_GENERATIONS and generation <= (self.newest or 1)
        )

    def text_of(self, column: str) -> str | None:
        """The Postgres text of a column of `after`; booleans are spelled true and false. KeyError if absent."""
        return _text(column, self.after or {}, self.exact)

    def old_text_of(self, column: str) -> str | None:
        """The Postgres text of a column of `before`. KeyError if absent."""
        return _text(column, self.before or {}, {})


def _text(column: str, values: Mapping[str, Json], exact: Mapping[str, str]) -> str | None:
    if column in exact:
        return exact[column]
    value = values[column]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
