"""The parts of cdc that work on one thing side by side: they begin, end and begin again together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from walvec.runtime.lifecycle import pause

logger = logging.getLogger(__name__)

_RESTART_SECONDS = 2.0
Part = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Runs until its event is set."""


async def serve(make: Callable[[], Sequence[Part] | None], stop: asyncio.Event, subject: Mapping[str, str]) -> None:
    """Runs the parts that `make` gives until `stop`. When one of them ends, all do; a defect is logged with `subject`,
    and they are made anew. None = there is nothing to be done any more."""
    while not stop.is_set():
        made = make()
        if made is None:
            return
        ended = asyncio.Event()
        running = [asyncio.create_task(part(ended)) for part in made]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.set()
            stopping.cancel()
            results = await asyncio.gather(*running, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                logger.error(
                    "a part of cdc failed and is begun anew",
                    extra={"action": "part_failed", **subject},
                    exc_info=result,
                )
        await pause(stop, _RESTART_SECONDS)
