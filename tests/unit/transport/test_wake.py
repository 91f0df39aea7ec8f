"""Datagrams say which topics changed; what is not ours is refused; no wake-up falls in a gap."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from walvec.transport.local.wake import Hub, datagram, parse

OURS = str(uuid4())


def test_a_datagram_carries_topics() -> None:
    assert parse(OURS, datagram(OURS, {3, 1})) == frozenset((1, 3))
    assert parse(OURS, datagram(OURS, ())) == frozenset()
    assert parse(OURS, datagram(OURS, range(1000))) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 40, datagram(str(uuid4()), {1}), datagram(OURS, {1})[:-1]],
    ids=["empty", "noise", "another", "cut"],
)
def test_strangers_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a datagram"):
        parse(OURS, data)


async def test_what_came_after_the_ticket_is_not_waited_for() -> None:
    hub = Hub(OURS)
    ticket = hub.ticket()
    hub.wake({1})
    async with asyncio.timeout(20):
        await hub.wait(1, ticket, 3600)
        await hub.wait(None, ticket, 3600)
    hub.wake(None)
    async with asyncio.timeout(20):
        await hub.wait(9, hub.ticket() - 1, 3600)


async def test_only_who_waits_for_the_topic_is_woken() -> None:
    hub = Hub(OURS)
    one, two = (asyncio.ensure_future(hub.wait(topic, hub.ticket(), 3600)) for topic in (1, 2))
    every = asyncio.ensure_future(hub.wait(None, hub.ticket(), 3600))
    await asyncio.sleep(0)
    hub.wake({2})
    await asyncio.wait_for(asyncio.gather(two, every), 20)
    assert not one.done()
    hub.wake(None)
    await asyncio.wait_for(one, 20)
