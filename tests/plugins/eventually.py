"""`await eventually(check)`: waits until a condition of another process or task holds.

Usable as the fixture `eventually`, or imported from here.
"""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest


async def eventually(check: Callable[[], Any], timeout: float = 20.0) -> Any:
    """The first true value of `check` (a function or coroutine function). An AssertionError in it means: not yet."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    failure: AssertionError | None = None
    while True:
        value = None
        try:
            value = check()
            if inspect.isawaitable(value):
                value = await value
            failure = None
        except AssertionError as error:
            failure = error
        if failure is None and value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s; last: {failure or value!r}") from failure
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.2)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Any]:
    return eventually
