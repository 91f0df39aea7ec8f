"""A role's name into a running role: its module is imported on choice, its ports get their adapters here.

Law: an outage of the control database, the log, a source or a store is waited for; a role ends when it is told to.
Next: the role's own `service.run`.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from walvec.cli.control import open_control, with_embedded
from walvec.cli.names import ROLES
from walvec.contracts.errors import (
    ControlUnavailable,
    LogUnavailable,
    SourceUnavailable,
    StoreUnavailable,
    WalvecError,
)
from walvec.definitions.ports import Control
from walvec.runtime import addresses, retry
from walvec.runtime.endpoint import Endpoint
from walvec.runtime.lifecycle import cancelled, pause, settle_memory
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log

logger = logging.getLogger(__name__)

UNAVAILABLE = (ControlUnavailable, LogUnavailable, SourceUnavailable, StoreUnavailable)
_MAX_PAUSE_SECONDS = 10.0

T = TypeVar("T")


async def run_role(role: str, settings: Settings, stop: asyncio.Event) -> None:
    """Runs until `stop`. Raises ConfigError for settings that no waiting mends, and LogDamaged.

    Its metrics and its health are served from the first moment, also while it waits for what is away.
    """
    endpoint = Endpoint(role, settings.metrics)

    async def once() -> None:
        async with AsyncExitStack() as stack:
            await _run_once(role, with_embedded(settings), stop, stack, endpoint)

    serving = asyncio.create_task(endpoint.run())
    try:
        await patiently(role, once, stop, waits=endpoint.health.waits)
    finally:
        await cancelled(serving)


async def _run_once(
    role: str, settings: Settings, stop: asyncio.Event, stack: AsyncExitStack, endpoint: Endpoint
) -> None:
    service = importlib.import_module(ROLES[role])
    addresses.configure(settings.api.allowed_hosts, settings.api.allowed_certificates)
    control = await open_control(settings)
    stack.push_async_callback(control.close)
    from walvec.transport.open import open_log

    log = open_log(settings)
    stack.push_async_callback(log.close)
    adapters = _adapters(role, settings, control, stack)
    settle_memory()
    logger.info("role starts", extra={"action": "start"})
    ended = asyncio.Event()
    watch = asyncio.create_task(_until_broken(log, stop, ended))
    questions = {"control_database": control.definitions.snapshot, "log": log.identity}
    try:
        with endpoint.health.asks(questions):
            await service.run(settings, ended, control=control, log=log, metrics=endpoint.metrics, **adapters)
        if watch.done() and (error := watch.result()) is not None:
            raise error
    finally:
        watch.cancel()
        await asyncio.wait((watch,))
    logger.info("role ends", extra={"action": "stop"})


async def _until_broken(log: Log, stop: asyncio.Event, ended: asyncio.Event) -> WalvecError | None:
    """Sets `ended` on `stop`, or when the log cannot be used any more: then it returns why."""
    stopping, broken = asyncio.create_task(stop.wait()), asyncio.create_task(log.broken())
    try:
        await asyncio.wait((stopping, broken), return_when=asyncio.FIRST_COMPLETED)
        return broken.result() if broken.done() else None
    finally:
        ended.set()
        stopping.cancel()
        broken.cancel()
        await asyncio.wait((stopping, broken))


def _adapters(role: str, settings: Settings, control: Control, stack: AsyncExitStack) -> dict[str, Any]:
    """What a role needs of the others, by the name of its port."""
    found: dict[str, Any] = {}
    if role in ("embedder", "sink", "api"):
        from sink.stores.registry import Stores

        stores = Stores(settings, control)
        stack.push_async_callback(stores.close)
        found |= {"embedder": {"lookup": stores}, "sink": {"stores": stores}, "api": {"store": stores}}[role]
    if role in ("embedder", "api"):
        from cdc.source import SourceAccess

        source = SourceAccess()
        stack.push_async_callback(source.close)
        found |= {"embedder": {"rows": source}, "api": {"source": source}}[role]
    if role == "api":
        from embedder.models import ModelAccess

        models = ModelAccess(settings)
        stack.push_async_callback(models.close)
        found["models"] = models
    return found


async def patiently(
    what: str,
    attempt: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    *,
    waits: Callable[[str], None] = lambda _: None,
) -> None:
    """Attempts again, with back-off, as long as something cannot be reached and nobody says stop; `waits` is told what
    is waited for."""
    seconds = 0.2
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        began = loop.time()
        try:
            await attempt()
            return
        except UNAVAILABLE as error:
            _report(what, error, seconds, waits)
        except BaseExceptionGroup as group:  # a task group that has met an outage
            outages, rest = group.split(UNAVAILABLE)
            if rest is not None or outages is None:
                raise
            _report(what, outages.exceptions[0], seconds, waits)
        if loop.time() - began > _MAX_PAUSE_SECONDS:
            seconds = 0.2
        await pause(stop, seconds * random.uniform(0.7, 1.3))
        seconds = min(seconds * 2, _MAX_PAUSE_SECONDS)


def _report(what: str, error: BaseException, seconds: float, waits: Callable[[str], None]) -> None:
    kind = error.kind if isinstance(error, WalvecError) else type(error).__name__
    retry.waits[kind] += 1
    waits(str(error))
    logger.warning(
        "something cannot be reached, waiting",
        extra={
            "action": "retry",
            "subject": what,
            "kind": kind,
            "reason": str(error),
            "pause_seconds": round(seconds, 1),
        },
    )
