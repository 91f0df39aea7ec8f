"""How tasks are ended."""

import asyncio

import pytest

from walvec.runtime import lifecycle


async def test_who_goes_on_after_it_was_cancelled_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_CANCEL_SECONDS", 0.01)
    heard = 0

    async def lives_through_failures() -> None:
        nonlocal heard
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1
                if heard == 3:
                    raise

    async def fails() -> None:
        raise RuntimeError("before")

    tasks = [asyncio.create_task(lives_through_failures()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        ended, failed = await lifecycle.cancelled(*tasks)
    assert heard == 3
    assert isinstance(ended, asyncio.CancelledError)
    assert isinstance(failed, RuntimeError)
    assert await lifecycle.cancelled() == []
