"""The topic that an existing Debezium writes for a table: where reading begins, and whether it is still that one.

Law: reading begins at the topic's end, and what has committed before is read by SELECT; a topic that was made anew is
read from its beginning, and the table too. Next: `bridge` reads it.
"""

from __future__ import annotations

import logging

from cdc.bridge_batch import Translator
from cdc.debezium_order import Bases, highest_sequence
from walvec.contracts.errors import LogUnavailable, NotFound, WalvecError
from walvec.definitions.model import TopicSource, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import read_again
from walvec.transport.ports import Log
from walvec.transport.records import Fetch, bridge_group

log = logging.getLogger(__name__)

EPOCH = 0
_TAIL = 200
"""Records at the end of a partition that tell how far the connector had come when reading begins."""


class TopicMissing(NotFound):
    """The table's source topic does not exist."""


class SourceTopic:
    def __init__(self, control: Control, transport: Log) -> None:
        self._control = control
        self._log = transport

    async def settle(self, table: VectorTable, source: TopicSource) -> None:
        """Stores where reading begins, the first time; and makes up for a topic that was deleted and made anew.

        Raises TopicMissing, and LogUnavailable when reading has to begin again.
        """
        topic = source.kafka_topic
        try:
            identity = await self._log.topic_identity(topic)
        except NotFound as e:
            raise TopicMissing(
                f"topic {topic} does not exist.",
                "Start Debezium's connector, which makes it; walvec goes on by itself and reads the table again.",
            ) from e
        known = (await self._control.progress.topics([table.id])).get(topic)
        begun = await self._control.progress.bridge(table.id)
        if begun is not None and known == identity:
            return
        if begun is None:
            await self._begin(table, source)
        elif known is not None:
            await self._begin_anew(table, topic)
        await self._control.progress.put_topics(table.id, {topic: identity})
        if begun is not None:
            raise LogUnavailable(f"topic {topic} is another one now.", "It is read from its beginning.")

    async def _begin(self, table: VectorTable, source: TopicSource) -> None:
        """At the topic's end: what is in it has committed, and the first backfill reads its outcome. Its last records
        tell how high that backfill may be stamped."""
        topic = source.kafka_topic
        ends = await self._log.end_offsets(topic)
        translator = Translator(table, source, epoch=EPOCH, topic="", partitions=1, headers=False)
        sequence = 0
        snapshots: dict[int, list[tuple[int, int]]] = {}
        for partition, end in ends.items():
            records = [r async for r in self._log.read(topic, partition, max(end - _TAIL, 0), end)]
            events = translator.parse([Fetch(partition, records)]) if records else []
            sequence = max(sequence, highest_sequence(p.event for p in events if p.event is not None))
            base = Bases()
            for item in events:
                if item.event is not None and base.meet(item.event, item.record.offset):
                    snapshots.setdefault(partition, []).append((item.record.offset, item.event.lsn))
        await self._control.progress.put_bridge(table.id, starts=ends, sequence=sequence, snapshots=snapshots)
        log.info(
            "reading begins at the end of the topic",
            extra={"action": "bridge_begins", "table": table.name, "topic": topic, "sequence": sequence},
        )

    async def _begin_anew(self, table: VectorTable, topic: str) -> None:
        reason = f"topic {topic} was deleted and made anew; what it had is lost, and the table is read again."
        await read_again(self._control, [table], reason, tell=True)
        starts = dict.fromkeys(await self._log.end_offsets(topic), 0)
        await self._control.progress.put_bridge(table.id, starts=starts)
        try:
            await self._log.reset(topic, bridge_group(table.storage_name), starts)
        except WalvecError as e:
            log.warning("group keeps its offsets", extra={"action": "reset_refused", "reason": e.message})
