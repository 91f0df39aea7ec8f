"""The embedder on the real local log: a kill between batches loses nothing and pays nothing twice."""

from pathlib import Path

from tests.plugins.embedder_world import World, change, key
from tests.plugins.eventually import eventually
from tests.plugins.openai_server import OpenAIServer
from walvec.runtime.settings import LogSettings
from walvec.transport.local.log import open_local_log


async def test_commit_after_output_on_the_local_log(tmp_path: Path, openai_server: OpenAIServer) -> None:
    world = World(openai_server.url)
    world.log = open_local_log(tmp_path, LogSettings.model_validate({}))  # type: ignore[assignment]
    try:
        await world.define()
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(3000)))
        async with world.killed():
            await eventually(lambda: openai_server.stats.texts >= 1000)
            await eventually(world.outputs)
        async with world.running():
            await world.drained()
        assert {r.key for r in await world.outputs()} == {key(i) for i in range(3000)}
        assert openai_server.stats.distinct == 3000
        assert openai_server.stats.texts <= 3000 + 4 * 512
    finally:
        await world.log.close()
