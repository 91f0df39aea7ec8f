"""Two generations on two providers, with a real source and store: the building one's provider stops, waits or refuses;
the active one's rows go on, and no text is paid for twice."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.generations_world import BODIES, NAMES, NO_PRICE, TABLE, VIEW, World, world
from tests.plugins.eventually import eventually
from tests.plugins.openai_server import OpenAIServer
from walvec.definitions.model import EmbeddingProvider, Generation

ROWS = 200
MODEL = "text-embedding-3-small"


@pytest.fixture
async def other_server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as server:
        yield server


@asynccontextmanager
async def paid_for(postgres: Any, *servers: OpenAIServer, rows: int = ROWS) -> AsyncIterator[World]:
    """Its active generation's vectors come from the first server, provider `emb_a`; `emb_b` asks the second."""
    async with world(postgres, rows=rows) as at:
        at.settings.embedder.batch_records = 20
        at.settings.embedder.max_batches = 2
        for name, server in zip("ab", servers, strict=False):
            provider = EmbeddingProvider(f"emb_{name}", name, "openai", "sk-x", server.url)
            await at.control.definitions.put_provider(provider)
        await at.active(await at.rebuild(asked(NAMES, "a")))
        yield at


def asked(generation: Generation, provider: str) -> Generation:
    return replace(generation, embedding_model=MODEL, embedding_provider_id=f"emb_{provider}", provider_kind="openai")


async def lives(at: World, row: int, name: str) -> None:
    """A change comes to the view, whatever becomes of the other generation."""
    await at.sql(f"UPDATE products SET name = '{name}' WHERE id = {row}")

    async def shown() -> bool:
        return await at.rows(f"SELECT embedded_text FROM {VIEW} WHERE id = {row}") == [(name,)]

    await eventually(shown)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [({"status": 401}, "401"), ({"max_text_tokens": 0}, "in a row"), ({"dimensions": 5}, "5 dimensions")],
    ids=["stop", "letters", "dimensions"],
)
async def test_a_building_provider_that_gives_nothing_stalls_and_can_be_tried_again(
    postgres: Any, openai_server: OpenAIServer, other_server: OpenAIServer, faults: dict[str, Any], reason: str
) -> None:
    for name, value in faults.items():
        setattr(other_server.faults, name, value)
    async with paid_for(postgres, openai_server, other_server) as at:
        assert openai_server.stats.texts == ROWS
        await at.rebuild(asked(BODIES, "b"))
        await lives(at, 3, "while it is built")

        async def stalled() -> bool:
            building = (await at.table()).building
            return building is not None and building.state == "stalled"

        await eventually(stalled)
        table = await at.table()
        assert table.building is not None
        assert reason in str(table.building.stalled)
        assert (table.error, table.blocked, table.pending_rebackfill) == (None, None, True)
        await lives(at, 4, "after it has stalled")
        await at.sql("DELETE FROM products WHERE id = 5")
        await at.equal()
        assert openai_server.stats.texts == openai_server.stats.distinct == ROWS + 2
        other_server.reset()
        _, task = await at.control.definitions.retry(TABLE)
        await at.active(task.generation)
        await at.equal()
        assert openai_server.stats.texts == ROWS + 2
        assert other_server.stats.texts == other_server.stats.distinct == ROWS - 1


async def test_a_building_provider_that_waits_keeps_nobody_else_waiting(
    postgres: Any, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """All it can have in hand is in hand; a restart of the role in between pays for nothing."""
    async with paid_for(postgres, openai_server, other_server) as at:
        other_server.faults.status, other_server.faults.headers = 429, {"retry-after-ms": "50"}
        number = await at.rebuild(asked(BODIES, "b"))
        await eventually(lambda: other_server.stats.requests > 3)
        for row in range(1, 60):
            await at.sql(f"UPDATE products SET name = 'waiting {row}' WHERE id = {row}")
        await lives(at, 60, "behind them all")
        await at.kill("embedder")
        await at.sql("UPDATE products SET name = 'while nobody was there' WHERE id = 61")
        at.start("embedder")
        await lives(at, 62, "again")
        await at.equal()
        building = (await at.table()).building
        assert building is not None
        assert (building.number, building.state) == (number, "building")
        assert openai_server.stats.texts == openai_server.stats.distinct == ROWS + 62
        other_server.faults.status = 0
        await at.active(number)
        await at.equal()
        assert openai_server.stats.texts == ROWS + 62
        assert other_server.stats.texts == other_server.stats.distinct


async def test_other_metadata_send_no_text(postgres: Any, openai_server: OpenAIServer) -> None:
    """Rows with another metadata column, and back again, each by a role that remembers nothing."""
    async with paid_for(postgres, openai_server, rows=500) as at:
        await at.active(await at.rebuild(asked(BODIES, "a")))
        paid = openai_server.stats.texts
        assert paid == 1000
        await at.kill("embedder")
        at.start("embedder")
        await at.active(await at.rebuild(asked(NO_PRICE, "a")))
        await at.equal()
        await at.kill("embedder")
        at.start("embedder")
        _, task = await at.control.definitions.rollback(TABLE)
        await at.active(task.generation)
        await at.equal()
        assert openai_server.stats.texts == paid
