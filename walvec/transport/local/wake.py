"""Who waits for which topic, in this process and in others.

Others are told by one loopback datagram each: the log's identity, a flag and the numbers of the topics that changed.
Law: a datagram is a hint. What it says is looked up in the file; one that is lost costs a fallback poll, a forged one a
look. Next: `log` opens the hub, `writer` sends after each commit.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Iterable
from uuid import UUID

logger = logging.getLogger(__name__)

_TOPICS_AT_MOST = 300


def datagram(identity: str, topics: Iterable[int]) -> bytes:
    numbers = sorted(topics)
    if len(numbers) > _TOPICS_AT_MOST:
        return UUID(identity).bytes + b"*"
    return UUID(identity).bytes + b"." + struct.pack(f"<{len(numbers)}I", *numbers)


def parse(identity: str, data: bytes) -> frozenset[int] | None:
    """The topics; None = all of them. Raises ValueError for what is not ours."""
    if data[:16] != UUID(identity).bytes or data[16:17] not in (b".", b"*") or (len(data) - 17) % 4:
        raise ValueError("not a datagram of this log")
    if data[16:17] == b"*":
        return None
    return frozenset(struct.unpack(f"<{(len(data) - 17) // 4}I", data[17:]))


class Sender:
    """Used by the writer's thread alone."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def tell(self, ports: Iterable[int], topics: Iterable[int]) -> None:
        message = datagram(self._identity, topics)
        for port in ports:
            try:
                self._socket.sendto(message, ("127.0.0.1", port))
            except OSError as error:
                # Its fallback poll finds the commit.
                logger.debug("wake-up was not sent", extra={"action": "wake_not_sent", "reason": error.strerror})

    def close(self) -> None:
        self._socket.close()


class Hub(asyncio.DatagramProtocol):
    """The waiters of this process. On the event loop only. Wake-ups are counted, so that none falls in a gap."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._count = 0
        self._last_all = 0
        self._last: dict[int, int] = {}
        self._waiters: dict[asyncio.Future[None], int | None] = {}
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> int:
        """Listens; returns the port, 0 where there is no loopback (the fallback poll is all there is then)."""
        if self._transport is None:
            loop = asyncio.get_running_loop()
            try:
                self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
            except OSError as error:
                extra = {"action": "wake_no_loopback", "reason": error.strerror}
                logger.warning("no loopback socket, the log is looked at by time", extra=extra)
                return 0
        return int(self._transport.get_extra_info("sockname")[1])

    @property
    def listening(self) -> bool:
        return self._transport is not None

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            self.wake(parse(self._identity, data))
        except ValueError:
            logger.debug("stray datagram", extra={"action": "wake_stray"})

    def ticket(self) -> int:
        """Take it before looking; `wait` with it returns at once when something came after."""
        return self._count

    def wake(self, topics: Iterable[int] | None) -> None:
        """None = whatever they wait for."""
        self._count += 1
        if topics is None:
            self._last_all = self._count
        else:
            self._last.update(dict.fromkeys(topics, self._count))
        for waiter, topic in list(self._waiters.items()):
            if not waiter.done() and (topic is None or self._last.get(topic, 0) == self._count or topics is None):
                waiter.set_result(None)

    async def wait(self, topic: int | None, ticket: int, timeout: float) -> None:
        """Until something happens to the topic (None = to anything), or `timeout` seconds."""
        last = self._count if topic is None else max(self._last.get(topic, 0), self._last_all)
        if last > ticket or timeout <= 0:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = topic
        try:
            await asyncio.wait((waiter,), timeout=timeout)
        finally:
            self._waiters.pop(waiter, None)

    def close(self) -> None:
        self.wake(None)
        if self._transport is not None:
            self._transport.close()
            self._transport = None
