"""The store's trouble with one generation: what is being built stalls, what serves is the table's trouble.

Rule stalled-before-passed: that it has stalled is durable before a record of it is passed over.
"""

from __future__ import annotations

import logging

from walvec.contracts.errors import ControlUnavailable, NotFound, WalvecError
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.retry import persistently

logger = logging.getLogger(__name__)


async def stalls(control: Control, table: VectorTable, generation: Generation, error: WalvecError) -> bool:
    """True: it is stalled, durably, or is not fed any more, and may be passed over for ever (rule never-back).
    False: it serves."""
    try:
        found = await persistently(
            lambda: control.states.set_stalled(table.id, generation.number, error.kind, str(error)),
            ControlUnavailable,
            action="set_stalled",
            table=table.name,
        )
    except NotFound:
        return True
    if found:
        extra = {"action": "stalled", "table": table.name, "generation": generation.number, "reason": str(error)}
        logger.error("generation stalled", extra=extra)
    return found
