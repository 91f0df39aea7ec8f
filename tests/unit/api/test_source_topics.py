"""What `apply` says of a `source` topic that a vector table cannot be read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from api.validation import build_vector_table
from cdc.bridge_batch import judge
from cdc.preflight import key_checks
from tests.unit.api.worlds import FakeModels, FakeSource
from tests.unit.cdc_bridge import samples
from walvec.contracts.errors import DefinitionError
from walvec.contracts.sources import Check
from walvec.definitions.document import VectorTableSpec
from walvec.definitions.model import Connection, EmbeddingProvider, TopicSource, VectorTable
from walvec.transport.memory import MemoryLog
from walvec.transport.ports import Log
from walvec.transport.records import Record, StoredRecord

TOPIC = "shop.public.products"


class Source(FakeSource):
    async def judge_topic(
        self, connection: Any, table: VectorTable, records: Mapping[int, Sequence[StoredRecord]]
    ) -> Check:
        return judge(table, records, leaves=(), enums=())


async def applied(log: Log | None) -> VectorTable:
    spec = VectorTableSpec.model_validate(
        {
            "name": "products",
            "connection": "shop",
            "embedding_provider": "local",
            "source_table": "public.products",
            "source": {"kafka_topic": TOPIC},
            "columns": [{"name": "name", "role": "embedding"}],
        }
    )
    connection = Connection("conn_1", "shop", "postgresql", "managed", "postgresql://x")
    provider = EmbeddingProvider("prov_1", "local", "static")
    return await build_vector_table(spec, connection, provider, Source(), FakeModels(), log=log)


async def refusal(log: Log | None) -> str:
    with pytest.raises(DefinitionError) as refused:
        await applied(log)
    return str(refused.value)


async def holding(*values: bytes) -> MemoryLog:
    log = MemoryLog()
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    await producer.append(TOPIC, [Record(b'{"id":1}', value, 0) for value in values])
    return log


async def test_the_local_log_has_no_topics_of_others() -> None:
    assert "Set WALVEC_LOG__KIND=kafka and WALVEC_KAFKA__BOOTSTRAP_SERVERS" in await refusal(None)


async def test_a_topic_that_is_missing() -> None:
    words = await refusal(MemoryLog())
    assert f"there is no topic '{TOPIC}'" in words
    assert "start the connector first, or make the topic" in words


async def test_records_of_another_kind() -> None:
    [log] = samples.records("unwrapped").values()
    assert "Take the transform ExtractNewRecordState (unwrap) off" in await refusal(await holding(log[0].value))
    assert "value.converter=org.apache.kafka.connect.json.JsonConverter" in await refusal(await holding(b"\0\0\0\0\1x"))
    [other] = samples.records("plain").values()
    words = await refusal(await holding(other[0].value))
    assert "a change of table public.docs, not of public.products" in words


async def test_an_empty_topic_is_taken() -> None:
    assert (await applied(await holding())).source == TopicSource(TOPIC)


@pytest.mark.parametrize(
    ("type_", "exact"),
    [
        ("numeric", False),
        ("numeric(10,2)", True),
        ("uuid", True),
        ("double precision", True),
        ("interval", False),
        ("integer[]", False),
    ],
)
def test_a_key_must_be_told_exactly(type_: str, exact: bool) -> None:
    table = samples.vector_table("docs", keys=("id",), spec=(("id", type_),))
    [check] = key_checks(table)
    assert check.ok is exact
    if not exact:
        assert f'key column "id" of type {type_} is not told exactly by Debezium\'s records' in check.detail
        assert "primary_key_column" in check.cure
