"""How a process ends: a signal becomes an event, what is in hand is drained, and an orphan does not linger.

Law: the first SIGTERM or SIGINT asks, the grace period's end commands; a role whose supervisor died ends within 5 s.
Next: a role's `service.run(settings, stop, …)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

logger = logging.getLogger(__name__)

SUPERVISOR = "WALVEC_SUPERVISOR_PID"
OWN_KEY = "WALVEC_SUPERVISOR_KEY"
"""The API key of this `walvec up` itself, made at its start and kept nowhere."""
"""Environment variable by which a supervisor tells its children who it is."""

_WATCH_SECONDS = 0.5
_M_ARENA_MAX = -8
_ORPHAN_GRACE_SECONDS = 3.0
_CANCEL_SECONDS = 6.0


async def run_until_signal(main: Callable[[asyncio.Event], Awaitable[None]], *, grace: float = 20.0) -> None:
    """Runs `main(stop)`; a signal sets `stop`; `main` that has not returned `grace` seconds later is cancelled."""
    few_arenas()
    stop = asyncio.Event()
    with signals(stop):
        watch_supervisor(stop)
        task = asyncio.ensure_future(main(stop))
        waiter = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=grace)
            if not task.done():
                logger.warning("not drained in time", extra={"action": "cancel", "grace_seconds": grace})
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                return
            await task
        finally:
            waiter.cancel()


@contextlib.contextmanager
def signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP set `stop`."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def watch_supervisor(stop: asyncio.Event) -> None:
    """Sets `stop` when the supervisor that started this process is gone, and ends the process soon after.

    A thread, so that a busy event loop does not keep an orphan alive. Without a supervisor: nothing.
    """
    expected = os.environ.get(SUPERVISOR, "")
    if not expected.isdigit():
        return
    supervisor = int(expected)
    loop = asyncio.get_running_loop()
    never = threading.Event()

    def watch() -> None:
        while os.getppid() == supervisor:
            never.wait(_WATCH_SECONDS)
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(stop.set)
        never.wait(_ORPHAN_GRACE_SECONDS)
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="supervisor watch", daemon=True).start()


def settle_memory() -> None:
    """Call it when what stays for good is loaded: batches make many objects and few cycles, so the collector looks
    at them less often than by default, and never again at the modules (a third of a role's time otherwise)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def few_arenas() -> None:
    """Call it before threads start: by default glibc gives each thread its own heap, and none of them ever gives back
    what a batch took."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Waits; True when it was cut short by `stop`."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def cancelled(*tasks: asyncio.Future[Any]) -> list[Any]:
    """Cancels them and waits until all have ended; what `gather(return_exceptions=True)` gives.

    Whoever goes on is cancelled again after a while: a library may have made a failure of its own, or an answer, of the
    first time (`asyncio.wait_for` does before Python 3.12), and a loop that lives through failures would never end.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_SECONDS)
    return await asyncio.gather(*tasks, return_exceptions=True)


def supervised() -> bool:
    """This process was started by `walvec up`."""
    return os.environ.get(SUPERVISOR, "").isdigit()
