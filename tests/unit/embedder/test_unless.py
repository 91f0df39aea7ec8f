"""Work that is given up when a role stops: nothing of it is left behind, however it ends."""

from __future__ import annotations

import asyncio

import pytest

from embedder.worker import _unless


class Work:
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.over = False

    async def fails_as_it_is_given_up(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("the topic is gone") from None
        finally:
            self.over = True


async def test_its_failure_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("now")

    with pytest.raises(ValueError, match="now"):
        await _unless(asyncio.Event(), fails())


async def test_what_is_given_up_on_stop_fails_nobody() -> None:
    stop, work = asyncio.Event(), Work()
    giving = asyncio.create_task(_unless(stop, work.fails_as_it_is_given_up()))
    await work.begun.wait()
    stop.set()
    await giving
    assert work.over


async def test_whoever_is_cancelled_leaves_no_work_and_no_unheard_failure() -> None:
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    work = Work()
    giving = asyncio.create_task(_unless(asyncio.Event(), work.fails_as_it_is_given_up()))
    await work.begun.wait()
    giving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving
    assert work.over
    del giving, work
    assert heard == []
