"""Are the tables' topics still the ones that records went to? What was in a topic that somebody deleted is lost.

Law: the rebackfill that makes up for a lost topic is durable before the identity of the new one is stored; a crash in
between reads the table once more. A topic whose identity was never stored is taken as it is found. Next: `cdc.routes`.
"""

from __future__ import annotations

from collections.abc import Iterable

from walvec.contracts.errors import NotFound
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import read_again
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic, vectors_topic


class TopicGone(NotFound):
    """A topic that records were routed to in this session was deleted: the session ends, the next one mends it."""


def topics_of(table: VectorTable) -> tuple[str, str]:
    return changes_topic(table.storage_name), vectors_topic(table.storage_name)


class Topics:
    """Those of one connection, in one session of its stream."""

    def __init__(self, control: Control, log: Log) -> None:
        self._control = control
        self._log = log
        self._routed: dict[str, str] = {}

    async def settle(self, table: VectorTable, *, read_anyway: bool = False) -> int:
        """Makes them if need be, and makes up for one that was lost; returns the partitions of `.changes`.

        `read_anyway`: a rebackfill was opened for another reason just now. Raises NotFound (the table was removed, or a
        topic was deleted in this moment), LogUnavailable, ControlUnavailable.
        """
        topics = topics_of(table)
        missing = [topic for topic in topics if await self._identity(topic) is None]
        partitions = await ensure_topics(table, *topics, control=self._control, log=self._log)
        now = {topic: await self._log.topic_identity(topic) for topic in topics}
        stored = await self._control.progress.topics([table.id])
        lost = [t for t in topics if stored.get(t, now[t]) != now[t]]
        if not lost and table.backfilled:
            lost = [t for t in missing if t not in stored]  # records went to it all the same
        if lost and not read_anyway:
            await read_again(self._control, [table], _words(lost, missing), tell=True)
        if now != stored:
            await self._control.progress.put_topics(table.id, now)
        self._routed.update(now)
        return partitions[0]

    async def check(self, tables: Iterable[VectorTable]) -> None:
        """Raises TopicGone when a topic that was settled is not there any more, or is another one."""
        for table in tables:
            for topic in topics_of(table):
                known = self._routed.get(topic)
                if known is not None and await self._identity(topic) != known:
                    raise TopicGone(f"topic {topic} was deleted.", "It is made anew, and its table is read again.")

    async def _identity(self, topic: str) -> str | None:
        try:
            return await self._log.topic_identity(topic)
        except NotFound:
            return None


def _words(lost: list[str], missing: list[str]) -> str:
    names = " and ".join(lost)
    were = "was" if len(lost) == 1 else "were"
    it = "it was" if len(lost) == 1 else "they were"
    how = f"deleted; {it} made anew" if set(lost) <= set(missing) else "deleted and made anew"
    return f"topic {names} {were} {how}, and the table is read again."
