"""What providers say of themselves becomes known of the table: `blocked` by the active one's, `stalled` by another's.

A building generation that asks the same model of the same provider as the active one waits as that one does. Next:
`context` makes it durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from embedder.channels import Channels
from embedder.context import Context
from embedder.dispatch import Dispatcher
from embedder.lanes import within
from walvec.contracts.errors import ControlUnavailable
from walvec.runtime.retry import persistently
from walvec.runtime.settings import EmbedderSettings

_LOOK_SECONDS = 1.0


async def watch_providers(
    context: Context, channels: Channels, settings: EmbedderSettings, idle: Callable[[], bool]
) -> None:
    """Until cancelled. `idle`: nothing waits for the active generation's provider."""
    changed = asyncio.Event()
    blocked = context.table.blocked
    while True:
        changed.clear()
        serving, building = _dispatchers(context, channels)
        ends = [d.listen(changed.set) for d in {serving, *(d for _, d in building)} if d is not None]
        try:
            reason = serving.stopped if serving is not None else None
            healed = blocked is not None and reason is None and (idle() or (serving is not None and serving.served))
            if (reason is not None and reason != blocked) or healed:
                blocked = reason
                table_id = context.table.id
                await persistently(
                    lambda table_id=table_id, reason=reason: context.control.states.set_blocked(  # type: ignore[misc]
                        table_id, reason
                    ),
                    ControlUnavailable,
                    action="set_blocked",
                )
                continue
            for number, dispatcher in building:
                if dispatcher is not serving:
                    await _stall(context, number, dispatcher, settings.building_patience_seconds)
            await within(changed.wait(), min(_LOOK_SECONDS, settings.building_patience_seconds / 4))
        finally:
            for end in ends:
                end()


def _dispatchers(context: Context, channels: Channels) -> tuple[Dispatcher | None, Sequence[tuple[int, Dispatcher]]]:
    """Of the active generation, and of each that is being built; those that were never asked have none."""
    table = context.table
    building = []
    for generation in context.live:
        found = channels.find(table, generation)
        if found is not None and not context.serves(generation.number):
            building.append((generation.number, found))
    return channels.find(table, table.active), building


async def _stall(context: Context, number: int, dispatcher: Dispatcher, patience: float) -> None:
    if dispatcher.stopped is not None:
        await context.stall(number, "provider_stop", dispatcher.stopped)
        return
    seconds, reason = dispatcher.owes(asyncio.get_running_loop().time())
    if seconds >= patience:
        said = f" It says: {reason}" if reason else ""
        await context.stall(
            number, "provider_wait", f"the embedding provider has given no answer for {seconds:.0f} seconds.{said}"
        )
