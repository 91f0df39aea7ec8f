"""The life of a vector table as one table: what an event makes of a state, or the code that refuses it. Pure.

`status` derives the state, routes ask `after` before they act, docs/architecture.md shows `TABLE`, and a test walks
every pair. A cell may depend on a fact that the state does not show (`When`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, get_args

from walvec.definitions.model import BACKFILLS, OPEN, SyncStatus, Task, VectorTable

Event = Literal[
    "backfill", "change", "adjust", "pause", "resume", "abort", "rollback", "cancel", "query", "delete",
    "loaded", "stalled", "failed", "blocked", "healed",
]  # fmt: skip
"""What a client asks (change: a definition with other vectors or storage; adjust: any other definition; cancel: of the
open backfill), then what roles tell (loaded: what was to be read is in the store and shown)."""
REQUESTS: tuple[Event, ...] = get_args(Event)[:10]
Fact = Literal[
    "building", "stalled", "swapping", "previous", "readable", "backfilled", "asked", "open", "busy", "paused", "lossy",
]  # fmt: skip
"""building: a generation is to take the active one's place; stalled: it gave up. previous: one is kept for a rollback.
asked: for a backfill, ever. readable: there are vectors, or they are on their way. open: a backfill is. busy: one is,
or is read and to be shown, and a client asked for it. paused: also below an error. lossy: the error is one after
which everything is read again."""
Layer = tuple[Literal["error", "paused", "blocked", "building", "active"], SyncStatus]

_LOSSES = ("table_changed", "slot_lost", "log_damaged")


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    code: str


@dataclass(frozen=True, slots=True)
class Without:
    """What shows when these layers are gone."""

    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class When:
    fact: Fact
    then: Outcome
    otherwise: Outcome


Outcome = SyncStatus | Literal["deleted"] | Refusal | Without | When | None
"""None: this cannot happen in that state."""

IN_PROGRESS = Refusal(409, "backfill_in_progress")
_PAUSED = Refusal(409, "sync_already_paused")
_NOT_PAUSED = Refusal(409, "sync_not_paused")
_SWAPPING = Refusal(409, "swap_in_progress")
_NO_BUILDING = Refusal(409, "nothing_to_abort")
_NO_PREVIOUS = Refusal(409, "nothing_to_roll_back")
_NO_TASK = Refusal(409, "task_not_cancellable")
_NOT_READY = Refusal(422, "vector_table_not_ready")

STATES: tuple[SyncStatus, ...] = get_args(SyncStatus)
_COVERS: tuple[SyncStatus, ...] = ("paused", "error", "blocked")


def _kept(states: Sequence[SyncStatus] = STATES) -> dict[SyncStatus, Outcome]:
    return {state: state for state in states}


_LIVES: tuple[SyncStatus, ...] = ("pending", "backfilling", "synced", "pending_rebackfill")
_RESUMED: Outcome = When("lossy", "backfilling", Without(("error", "paused")))
_CANCELLED: Outcome = When("building", "pending_rebackfill", When("backfilled", "synced", "pending"))

REFUSALS: Mapping[Event, Sequence[tuple[bool, Fact, Refusal]]] = {
    "backfill": [(True, "busy", IN_PROGRESS)],
    "change": [(True, "swapping", _SWAPPING)],
    "adjust": [(True, "swapping", _SWAPPING)],
    "pause": [(True, "paused", _PAUSED)],
    "abort": [(True, "swapping", _SWAPPING), (False, "building", _NO_BUILDING)],
    "rollback": [(True, "swapping", _SWAPPING), (False, "previous", _NO_PREVIOUS)],
    "cancel": [(False, "open", _NO_TASK)],
    "query": [(False, "readable", _NOT_READY)],
}
"""In every state: refused when the fact is so (True), or is not (False)."""

TABLE: Mapping[Event, Mapping[SyncStatus, Outcome]] = {
    "backfill": {**dict.fromkeys(_LIVES, "backfilling"), **_kept(_COVERS)},
    "change": {
        **dict.fromkeys(_LIVES, "pending_rebackfill"),
        "pending": When("asked", "pending_rebackfill", "pending"),
        **_kept(_COVERS),
    },
    "adjust": _kept(),
    "pause": {**dict.fromkeys(STATES, "paused"), "paused": _PAUSED, "error": "error"},
    "resume": {**dict.fromkeys(STATES, _NOT_PAUSED), "paused": _RESUMED, "error": _RESUMED},
    "abort": {**dict.fromkeys(_LIVES, Without(("building",))), **_kept(_COVERS)},
    "rollback": {**dict.fromkeys(_LIVES, "pending_rebackfill"), **_kept(_COVERS)},
    "cancel": {**dict.fromkeys(_LIVES, _CANCELLED), **_kept(_COVERS)},
    "query": _kept(),
    "delete": dict.fromkeys(STATES, "deleted"),
    "loaded": {
        "pending": None,
        "backfilling": "synced",
        "synced": None,
        "pending_rebackfill": When("stalled", None, "synced"),
        **{state: When("stalled", None, state) for state in _COVERS},
    },
    "stalled": {**dict.fromkeys(_LIVES, When("building", "pending_rebackfill", None)), **_kept(_COVERS)},
    "failed": dict.fromkeys(STATES, "error"),
    "blocked": {**dict.fromkeys(STATES, "blocked"), "error": "error", "paused": "paused"},
    "healed": {**_kept(), "blocked": Without(("blocked",))},
}


def layers_of(table: VectorTable, tasks: Sequence[Task]) -> tuple[Layer, ...]:
    """What is true of a table at once, worst first; the first one shows. `tasks`: its recent ones, newest first."""
    found: list[Layer] = []
    if table.error:
        found.append(("error", "error"))
    if table.paused:
        found.append(("paused", "paused"))
    if table.blocked:
        found.append(("blocked", "blocked"))
    building = table.building
    if building is not None:
        own = _newest(tasks, building.number)
        begun = own is not None and (
            own.status in ("running", "completed") or (own.status == "pending" and bool(own.params.get("asked")))
        )
        works = begun and building.state == "building"
        found.append(("building", "backfilling" if works else "pending_rebackfill"))
    own = _newest(tasks, table.active.number)
    if own is not None and own.status in OPEN:
        life: SyncStatus = "backfilling"
    elif table.backfilled:
        life = "synced"
    else:
        # what was read is in the store only when the table says so
        life = "backfilling" if own is not None and own.status == "completed" else "pending"
    return (*found, ("active", life))


def facts_of(table: VectorTable, tasks: Sequence[Task]) -> frozenset[Fact]:
    open_tasks = [t for t in tasks if t.task_type in BACKFILLS and t.status in OPEN]
    building = table.building
    own = None if building is None else next((t for t in open_tasks if t.generation == building.number), None)
    if building is None:
        busy = bool(open_tasks)
    else:
        read = own if own is not None or not building.filled else _newest(tasks, building.number)
        busy = bool(read and read.params.get("asked"))
    asked = any(t.task_type in BACKFILLS for t in tasks)
    found: dict[Fact, bool] = {
        "building": building is not None,
        "previous": table.previous is not None,
        "swapping": any(g.swapping for g in table.generations),
        "readable": table.backfilled or asked,
        "backfilled": table.backfilled,
        "asked": asked,
        "stalled": building is not None and building.state == "stalled",
        "open": bool(open_tasks),
        "busy": busy,
        "paused": table.paused,
        "lossy": (table.error or {}).get("kind") in _LOSSES and (table.backfilled or table.backfill == "auto"),
    }
    return frozenset(fact for fact, true in found.items() if true)


def _newest(tasks: Sequence[Task], generation: int) -> Task | None:
    return next((t for t in tasks if t.task_type in BACKFILLS and t.generation == generation), None)


def after(layers: Sequence[Layer], event: Event, facts: Set[Fact]) -> SyncStatus | Literal["deleted"] | Refusal | None:
    """What the table's cell says of this event now."""
    for refused, fact, refusal in REFUSALS.get(event, ()):
        if (fact in facts) == refused:
            return refusal
    outcome = TABLE[event][layers[0][1]]
    while isinstance(outcome, When):
        outcome = outcome.then if outcome.fact in facts else outcome.otherwise
    if isinstance(outcome, Without):
        return next(state for kind, state in layers if kind not in outcome.layers)
    return outcome


def spelled(outcome: Outcome) -> str:
    """A cell as the documentation shows it."""
    if isinstance(outcome, When):
        return f"{outcome.fact}: {spelled(outcome.then)}; else {spelled(outcome.otherwise)}"
    if isinstance(outcome, Refusal):
        return f"{outcome.status} {outcome.code}"
    if isinstance(outcome, Without):
        return "what else is true"
    return outcome or "—"


def documented() -> str:
    """The table in Markdown, for docs/architecture.md."""
    lines = ["| event | refused | " + " | ".join(STATES) + " |", "|---" * (len(STATES) + 2) + "|"]
    for event, row in TABLE.items():
        refused = "; ".join(
            f"{'' if so else 'not '}{fact}: {spelled(refusal)}" for so, fact, refusal in REFUSALS.get(event, ())
        )
        lines.append(f"| {event} | {refused or '—'} | " + " | ".join(spelled(row[state]) for state in STATES) + " |")
    return "\n".join(lines)


_SAID: Mapping[str, tuple[str, str]] = {
    "backfill_in_progress": (
        "a backfill of {name!r} is already running.",
        "Wait for it: GET /v1/vector-tables/{id}/sync/status",
    ),
    "sync_already_paused": (
        "{name!r} is paused already.",
        "POST /v1/vector-tables/{id}/sync/resume goes on (`walvec resume {name}`).",
    ),
    "sync_not_paused": ("{name!r} is not paused; it is {state}.", ""),
    "swap_in_progress": (
        "the new generation of {name!r} is taking the old one's place at this moment.",
        "Ask again in a second.",
    ),
    "nothing_to_abort": ("no new generation of {name!r} is being built.", ""),
    "nothing_to_roll_back": (
        "no former generation of {name!r} is kept.",
        "It is kept for keep_previous seconds after a swap; PUT /v1/vector-tables/{id} builds a new one.",
    ),
    "task_not_cancellable": ("{name!r} has no open backfill.", ""),
    "vector_table_not_ready": (
        "vector table {name!r} has no vectors yet: its first backfill was not asked for.",
        "POST /v1/vector-tables/{id}/backfill",
    ),
}


def said(refusal: Refusal, table: VectorTable, state: SyncStatus) -> tuple[str, str]:
    """Message and cure of a refusal."""
    message, cure = _SAID[refusal.code]
    words = {"name": table.name, "id": table.id, "state": state}
    return message.format(**words), cure.format(**words)
