"""What all batches of one vector table share, and what may become of its generations.

Rule stalled-before-passed: what a building generation cannot go on with is durable in the control database before its
records are passed over; then nothing of it is looked at any more. Next: `lanes` does a generation's work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from embedder.dispatch import Dispatcher
from embedder.memory import Memory
from embedder.planner import Planner
from embedder.ports import RowReader, StoreLookup
from embedder.usage import Usage
from walvec.contracts.errors import ControlUnavailable
from walvec.definitions.model import Connection, Generation, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.retry import persistently
from walvec.transport.ports import Producer

_log = logging.getLogger(__name__)


class Stalled(Exception):
    """The generation is not fed any more, and that is durable: what is in hand for it is dropped."""


@dataclass(slots=True, eq=False)
class Context:
    table: VectorTable
    connection: Connection
    producer: Producer
    control: Control
    lookup: StoreLookup
    rows: RowReader
    dispatcher_of: Callable[[Generation], Dispatcher]
    memory_of: Callable[[Generation], Memory]
    dead_letter_limit: int
    usage: Usage = field(default_factory=Usage)
    planners: dict[int, Planner] = field(default_factory=dict)
    embedding: dict[tuple[int, bytes], asyncio.Event] = field(default_factory=dict)
    """Rows that wait for a provider, by generation and key; set when their batch has ended."""
    passed: set[int] = field(default_factory=set)
    """Generations that stalled here: their numbers never come back."""
    serving: set[int] = field(default_factory=set)
    """Building ones that could not be stalled, for they serve, whatever the feed says yet."""
    redefined: asyncio.Event = field(default_factory=asyncio.Event)
    _dead: dict[int, int] = field(default_factory=dict)
    _kept: int = 0
    """The generation whose dead letters in a row the control database counts."""

    def __post_init__(self) -> None:
        self._kept = self.table.active.number
        self._dead[self._kept] = self.table.dead_in_row

    @property
    def live(self) -> Sequence[Generation]:
        """The generations that are fed, the active one first."""
        found = [g for g in self.table.live_generations if g.number not in self.passed]
        return sorted(found, key=lambda g: g.state != "active")

    def serves(self, number: int) -> bool:
        return number == self.table.active.number or number in self.serving

    def planner(self, generation: Generation) -> Planner:
        kind = self.table.kind_of(generation)
        found = self.planners.get(generation.number)
        if found is None or found.generation is not generation or found.provider_kind != kind:
            found = self.planners[generation.number] = Planner(generation, kind)
        return found

    def define(self, table: VectorTable) -> None:
        """As it is now."""
        self.table = table
        self.redefined.set()

    async def stall(self, number: int, kind: str, reason: str) -> bool:
        """Whether the generation may be passed over from now on; durable on return. One that serves may not be."""
        if self.serves(number):
            return False
        if number in self.passed:
            return True
        table_id = self.table.id
        stalled = await persistently(
            lambda: self.control.states.set_stalled(table_id, number, kind, reason),
            ControlUnavailable,
            action="set_stalled",
        )
        (self.passed if stalled else self.serving).add(number)
        self.redefined.set()
        if stalled:
            _log.error(
                "generation stalled",
                extra={
                    "action": "stalled",
                    "vector_table": table_id,
                    "generation": number,
                    "kind": kind,
                    "reason": reason,
                },
            )
        return stalled

    async def count_dead(self, number: int, letters: int) -> None:
        """Dead letters in a row, of each generation apart. Those of the one that serves are kept in the control
        database, so that a restart counts on; past the limit the table stops. Those of a building one count from its
        worker's start; past the limit it stalls. Raises Stalled."""
        count = self._dead.get(number, 0) + letters
        if self.serves(number):
            if number != self._kept:  # it has just taken the other one's place
                await self._count(0)
                letters, self._kept = count, number
            count = await self._count(letters)
        self._dead[number] = count
        if count < self.dead_letter_limit:
            return
        reason = f"{count} changes in a row could not be embedded."
        cure = 'See "walvec dead list", mend the cause, then'
        if await self.stall(number, "dead_letters", f"{reason} {cure} run a backfill."):
            raise Stalled
        table_id = self.table.id
        _log.error(
            "dead letter limit reached", extra={"action": "table_error", "vector_table": table_id, "count": count}
        )
        await persistently(
            lambda: self.control.states.set_error(table_id, "dead_letters", reason, f"{cure} resume the table."),
            ControlUnavailable,
            action="set_error",
        )

    async def forget_dead(self, number: int) -> None:
        """Something of the generation was embedded or is gone: no dead letters in a row any more."""
        if not self._dead.get(number):
            return
        self._dead[number] = 0
        if number == self._kept:
            await self._count(0)

    async def _count(self, letters: int) -> int:
        states, table_id = self.control.states, self.table.id
        return await persistently(lambda: states.count_dead(table_id, letters), ControlUnavailable, action="count_dead")
