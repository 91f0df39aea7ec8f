"""Records that a topic does not take: each becomes a dead letter, and what its key needs instead takes its place.

Law: the letters are durable before what stands in for their records (rule dead-delete), and both before the caller goes
on: nothing that is too large is dropped, and nothing behind it waits for a person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from walvec.contracts.errors import RecordTooLarge
from walvec.contracts.letters import DeadLetter
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import VectorTable
from walvec.definitions.ports import Control
from walvec.transport.ports import Log, Producer
from walvec.transport.records import Record, dead_topic, letter_record

Instead = Callable[[Sequence[Record], int], Awaitable[Sequence[Record | None]]]
"""(records that are too large, limit in bytes) -> what goes in the place of each, None = nothing."""


async def append_fitting(producer: Producer, topic: str, records: Sequence[Record], instead: Instead) -> None:
    """As `Producer.append`, for records some of which may be too large. Raises what `append` and `instead` raise."""
    left: list[Record] = list(records)
    while left:
        try:
            await producer.append(topic, left)
        except RecordTooLarge as e:
            large = set(e.indices)
            places = dict(zip(e.indices, await instead([left[i] for i in e.indices], e.limit), strict=True))
            found = (places[i] if i in large else record for i, record in enumerate(left))
            left = [record for record in found if record is not None]
        else:
            return


def words(topic: str, record: Record, limit: int) -> str:
    size = len(record.value) + len(record.key or b"") + sum(len(name) + len(value) for name, value in record.headers)
    return (
        f"the record has {size} bytes; topic {topic} takes at most {limit}. Raise WALVEC_KAFKA__MAX_RECORD_BYTES and"
        f" the topic's max.message.bytes (kafka-configs --alter --topic {topic} --add-config max.message.bytes=…), then"
        " replay the letter."
    )


async def bury(letters: Sequence[DeadLetter], table: VectorTable, *, control: Control, log: Log) -> None:
    """Durable on return, in the control database and in `.dead`. Raises NotFound when the table was removed."""
    await control.letters.put(letters)
    topic = dead_topic(table.storage_name)
    await ensure_topics(table, topic, control=control, log=log)
    producer = log.producer()
    try:
        await producer.append(topic, [letter_record(letter) for letter in letters])
    finally:
        await producer.close()
