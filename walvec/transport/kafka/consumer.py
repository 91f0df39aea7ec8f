"""A member of a group on Kafka: what the roles poll, commit, pause and seek.

librdkafka (`fetcher`, a thread) joins, heartbeats and fetches ahead; this side hands out, and decides what a commit
may say. Law: `on_revoke` runs within `poll` or `close`; a commit is sent only for a partition that is owned, and never
below what is committed. A commit names the topic's id, so that it counts for nothing once the topic was made anew.

Memory: librdkafka's queue (`queued.max.messages.kbytes`, 8 MB) and the buffer (4 MB), per consumer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, TopicCollection

from walvec.contracts.errors import LogUnavailable, NotFound, PartitionLost
from walvec.runtime.settings import KafkaSettings
from walvec.transport.kafka.client import KafkaClient
from walvec.transport.kafka.fetcher import Fetcher
from walvec.transport.kafka.membership import Membership
from walvec.transport.kafka.protocols import EVICTED, IN_BETWEEN, NO_TOPIC, wanted
from walvec.transport.kafka.rebalances import Patience
from walvec.transport.ports import OnRevoke
from walvec.transport.records import Fetch
from walvec.transport.sharing import given_away, not_owned

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_LEAVE_SECONDS = 10.0
_WATCH_SECONDS = 5.0
_AGAIN_SECONDS = 0.1
_AGAIN_ATTEMPTS = 20

_DEFAULTS: dict[str, Any] = {
    # Regular polls are the thread's business, whatever the role is doing: this one ends a process that hangs.
    "max.poll.interval.ms": 60_000,
    "queued.max.messages.kbytes": 8 * 1024,
    "fetch.message.max.bytes": 1024 * 1024,
    # A broker that hangs is given up, and commits with it, before the group's patience ends.
    "socket.timeout.ms": 10_000,
    # Else a full queue is looked at again after a second.
    "fetch.queue.backoff.ms": 20,
}


class KafkaConsumer:
    def __init__(
        self,
        client: KafkaClient,
        topic: str,
        group: str,
        on_revoke: OnRevoke | None,
        settings: KafkaSettings,
        *,
        patience: Patience | None = None,
    ) -> None:
        self._client = client
        self._topic = topic
        self._group = group
        self._on_revoke = on_revoke
        self._settings = settings
        self._patience = patience
        self._fetcher: Fetcher | None = None
        self._joining: asyncio.Task[None] | None = None
        self._handing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._doubt = asyncio.Event()
        self._committing = asyncio.Lock()
        self._gone: NotFound | None = None
        self._paused = False
        self._closing = False
        self._closed = False

    async def poll(self, *, max_records: int, max_bytes: int, timeout: float) -> list[Fetch]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._check_open()
        while not self._closing:
            self._news.clear()
            fetcher = self._fetcher
            if fetcher is None:
                await self._join()
                continue
            await self._hand_over(fetcher)
            if self._doubt.is_set() and self._gone is None:
                await self._check_topic(fetcher)
            if self._gone is not None:
                await self._leave_gone(fetcher)
            if fetcher.failures or fetcher.ended:
                await self._raise_failure(fetcher)
            if not self._paused:
                member = fetcher.membership
                with member.lock:
                    # not from a partition whose loss the caller has not been told of
                    fetches = [] if member.lost else member.buffer.take(max_records, max_bytes)
                    if fetches:
                        fetcher.handed_out = time.monotonic()
                        member.lock.notify_all()
                if fetches:
                    return fetches
            left = deadline - loop.time()
            if left <= 0:
                self._raise_trouble(fetcher)
                return []
            await _within(self._news.wait(), left)
        return []

    async def commit(self, offsets: Mapping[int, int]) -> None:
        self._check_open()
        lost = frozenset(offsets)
        async with self._committing:
            if self._fetcher is not None:
                lost = await self._commit(self._fetcher, dict(offsets))
        if lost:
            raise given_away(lost, self._topic)

    def assignment(self) -> frozenset[int]:
        fetcher = self._fetcher
        if fetcher is None or self._closed:
            return frozenset()
        member = fetcher.membership
        with member.lock:
            return frozenset(member.owned) - member.lost

    def pause(self) -> None:
        self._set_paused(True)

    def resume(self) -> None:
        self._set_paused(False)

    async def seek(self, partition: int, offset: int) -> None:
        self._check_open()
        if self._fetcher is None or partition not in self.assignment():
            raise not_owned(partition, self._topic)
        self._fetcher.membership.seek(partition, max(0, offset))
        self._news.set()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._news.set()
        if self._joining is not None:
            await asyncio.wait((self._joining,))
        if self._watching is not None:
            self._watching.cancel()
        fetcher = self._fetcher
        try:
            if fetcher is not None:
                if self._handing is not None:
                    await asyncio.wait((self._handing,))
                await self._revoke(fetcher.membership.held())
        finally:
            async with self._committing:
                self._closed = True
            if fetcher is not None:
                await self._stop(fetcher)

    # ---- joining and leaving

    async def _join(self) -> None:
        """Shielded: a poll that is cancelled must not leave a member behind that nobody knows of."""
        if self._joining is None:
            self._joining = asyncio.create_task(self._enter())
        try:
            await asyncio.shield(self._joining)
        finally:
            if self._joining.done():
                self._joining = None

    async def _enter(self) -> None:
        identity = await self._identity()
        loop = asyncio.get_running_loop()

        def post(call: Callable[[], None]) -> None:
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:  # the loop was closed without closing the consumer
                fetcher.close()

        joined = asyncio.Event()

        def news() -> None:
            self._news.set()
            if fetcher.membership.joined or fetcher.failed or fetcher.ended:
                joined.set()
            if fetcher.suspicious:
                self._doubt.set()

        fetcher = Fetcher(
            {**_DEFAULTS, **self._client.consumer_config(self._group)},
            self._topic,
            identity,
            protocols=wanted(self._settings.group_protocol),
            make=lambda properties: self._client.make(confluent_kafka.Consumer, properties),
            translate=lambda error: self._client.translate(error, self._topic),
            post=post,
            changed=lambda: post(news),
            patience=self._patience,
        )
        fetcher.paused = self._paused
        self._doubt.clear()
        self._gone = None
        fetcher.start()
        self._fetcher = fetcher
        self._watching = asyncio.create_task(self._watch())
        # What is paused or has no partition free for it joins all the same.
        await _within(joined.wait(), _JOIN_SECONDS)

    async def _identity(self) -> str:
        """The topic's id: another one after it was deleted and made anew. Raises NotFound, LogUnavailable."""
        futures = self._client.admin.describe_topics(TopicCollection([self._topic]), request_timeout=_ANSWER_SECONDS)
        found = await self._client.answer(futures[self._topic], self._topic)
        return str(found.topic_id)

    async def _watch(self) -> None:
        """librdkafka reads on in a topic that was made anew, from an offset that means nothing there."""
        while True:
            await _within(self._doubt.wait(), _WATCH_SECONDS)
            fetcher = self._fetcher
            if fetcher is not None:
                await self._check_topic(fetcher)
                if self._gone is not None:
                    self._news.set()
                    return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _check_topic(self, fetcher: Fetcher) -> None:
        self._doubt.clear()
        fetcher.suspicious = False
        try:
            identity = await self._identity()
        except NotFound as error:
            self._gone = error
        except LogUnavailable as error:
            logger.debug("topic not checked", extra={"action": "topic_watch", "reason": str(error)})
        else:
            if identity != fetcher.topic_identity:
                self._gone = NotFound(
                    f"The topic {self._topic} was deleted and made anew: its records are not those that were read.",
                    "It is read from its beginning; the table is read again from its source.",
                )

    async def _leave_gone(self, fetcher: Fetcher) -> None:
        gone = self._gone
        assert gone is not None
        try:
            await self._revoke(fetcher.membership.held())
        finally:
            await self._forget(fetcher)
        raise gone

    async def _raise_failure(self, fetcher: Fetcher) -> None:
        with fetcher.lock:
            error = fetcher.failures.popleft() if fetcher.failures else None
            over = (fetcher.failed or fetcher.ended) and not fetcher.failures
        if over:
            await self._forget(fetcher)
            await self._hand_over(fetcher)
        if error is not None:
            raise error

    async def _forget(self, fetcher: Fetcher) -> None:
        """The next poll joins anew."""
        self._fetcher = None
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        await self._stop(fetcher)

    async def _stop(self, fetcher: Fetcher) -> None:
        fetcher.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + _LEAVE_SECONDS
        while not fetcher.ended and loop.time() < end:
            self._news.clear()
            if not fetcher.ended:
                await _within(self._news.wait(), end - loop.time())
        self._news.set()

    def _raise_trouble(self, fetcher: Fetcher) -> None:
        """Nothing came, and there was a reason to hear of, once."""
        with fetcher.lock:
            trouble, fetcher.trouble = fetcher.trouble, None
        if trouble is not None:
            raise trouble

    # ---- revocations

    async def _hand_over(self, fetcher: Fetcher) -> None:
        if self._handing is None:
            if not (fetcher.membership.revoking or fetcher.membership.lost):
                return
            self._handing = asyncio.create_task(self._tell(fetcher.membership))
        try:
            await asyncio.shield(self._handing)
        finally:
            if self._handing.done():
                self._handing = None

    async def _tell(self, member: Membership) -> None:
        asked = member.take_up()
        try:
            await self._revoke(frozenset(member.lost) | asked)
            async with self._committing:
                pass  # a commit that is under way belongs to this generation
        finally:
            with member.lock:
                member.lost.clear()
            if asked:
                member.release()

    async def _revoke(self, partitions: frozenset[int]) -> None:
        if not partitions or self._on_revoke is None:
            return
        try:
            await self._on_revoke(partitions)
        except PartitionLost:
            logger.info("commit came too late", extra={"action": "commit_late", "topic": self._topic})

    def _set_paused(self, paused: bool) -> None:
        if paused == self._paused:
            return
        self._paused = paused
        self._news.set()
        if self._fetcher is not None:
            with self._fetcher.lock:
                self._fetcher.paused = paused
                self._fetcher.lock.notify_all()

    # ---- commits

    async def _commit(self, fetcher: Fetcher, offsets: dict[int, int]) -> frozenset[int]:
        """The partitions that are lost. Raises LogUnavailable when it is not known."""
        lost: set[int] = set()
        member = fetcher.membership
        for attempt in range(_AGAIN_ATTEMPTS + 1):
            with member.lock:
                owned = {p for p in offsets if p in member.owned and p not in member.lost}
                due = {p: offsets[p] for p in owned if offsets[p] > member.owned[p].committed}
            lost |= frozenset(offsets) - owned
            offsets = due
            if not due:
                break
            errors = await self._send(fetcher, due)
            if any(error.code() in NO_TOPIC for error in errors.values()):
                self._doubt.set()
            retry: dict[int, int] = {}
            for partition, error in errors.items():
                code = error.code()
                if code in EVICTED or (code == KafkaError.ILLEGAL_GENERATION and attempt == _AGAIN_ATTEMPTS):
                    lost.add(partition)
                elif code in IN_BETWEEN and attempt < _AGAIN_ATTEMPTS:
                    retry[partition] = due[partition]
                else:
                    raise self._client.translate(error, self._topic)
            if not retry:
                break
            offsets = retry
            await asyncio.sleep(_AGAIN_SECONDS)
        return frozenset(lost)

    async def _send(self, fetcher: Fetcher, offsets: dict[int, int]) -> dict[int, KafkaError]:
        """By partition, what went wrong."""

        answer: asyncio.Future[dict[int, KafkaError]] = asyncio.get_running_loop().create_future()

        def done(errors: dict[int, KafkaError]) -> None:
            if not answer.done():
                answer.set_result(errors)

        fetcher.commits.ask(offsets, done)
        return await answer

    def _check_open(self) -> None:
        if self._closed or (self._closing and self._fetcher is None):
            raise LogUnavailable("This consumer is closed.", "Open another one.")


async def _within(wait: Awaitable[object], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        return
