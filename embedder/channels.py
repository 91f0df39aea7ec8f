"""A role process's dispatchers: one per provider, model and dimensions, for all tables and generations that ask.

What was sent for is remembered per kind, model and dimensions: another provider of that kind gives the same vectors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from embedder.dispatch import Dispatcher
from embedder.memory import Memory
from embedder.providers import registry
from walvec.contracts.errors import DefinitionError
from walvec.definitions.model import EmbeddingProvider, Generation, Snapshot, VectorTable
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.settings import Settings

_log = logging.getLogger(__name__)
_LOCAL_MEMORY = 16 * 1024**2  # nothing is paid for: only what repeats soon is worth keeping

_Key = tuple[str, str, int]
"""Provider's id or kind, model, dimensions."""


@dataclass(slots=True, eq=False)
class Channel:
    """A dispatcher with the definition it was made of and the task that runs it."""

    provider: EmbeddingProvider
    dispatcher: Dispatcher
    task: asyncio.Task[None]


class Channels:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._snapshot = Snapshot(0, {}, {}, {})
        self._open: dict[_Key, Channel] = {}
        self._memories: dict[_Key, Memory] = {}

    def __iter__(self) -> Iterator[tuple[_Key, Channel]]:
        return iter(list(self._open.items()))

    async def define(self, snapshot: Snapshot) -> None:
        """An edited provider is used at once."""
        self._snapshot = snapshot
        for key, channel in self:
            provider = snapshot.providers.get(key[0])
            if provider is not None and provider != channel.provider:
                await self._replace(key, channel, provider)

    async def close_unused(self) -> None:
        """Those that no live generation of any table asks any more."""
        live = [(t, g) for t in self._snapshot.vector_tables.values() for g in t.live_generations]
        wanted = {_channel_key(t, g) for t, g in live}
        for key in [k for k in self._open if k not in wanted]:
            await cancelled(self._open.pop(key).task)
        kept = {_memory_key(t, g) for t, g in live}
        self._memories = {k: m for k, m in self._memories.items() if k in kept}

    async def close(self) -> None:
        for _, channel in self:
            await cancelled(channel.task)

    def find(self, table: VectorTable, generation: Generation) -> Dispatcher | None:
        """If it was asked for."""
        channel = self._open.get(_channel_key(table, generation))
        return None if channel is None else channel.dispatcher

    def dispatcher(self, table: VectorTable, generation: Generation) -> Dispatcher:
        """Raises DefinitionError."""
        key = _channel_key(table, generation)
        channel = self._open.get(key)
        if channel is None:
            provider = self._snapshot.providers.get(key[0])
            if provider is None:
                raise DefinitionError(f"there is no embedding provider {key[0]}.", "Apply the definitions again.")
            made = registry.make(provider, key[1], key[2], self._settings)
            memory = self.memory(table, generation)
            if made.limits.local:
                memory.bound(_LOCAL_MEMORY)
            dispatcher = Dispatcher(made, memory=memory)
            task = asyncio.create_task(_keep_sending(dispatcher))
            channel = self._open[key] = Channel(provider, dispatcher, task)
        return channel.dispatcher

    def memory(self, table: VectorTable, generation: Generation) -> Memory:
        return self._memories.setdefault(_memory_key(table, generation), Memory())

    async def _replace(self, key: _Key, channel: Channel, provider: EmbeddingProvider) -> None:
        try:
            made = registry.make(provider, key[1], key[2], self._settings)
        except DefinitionError as e:
            _log.error("provider cannot be used", extra={"action": "provider_edited", "reason": str(e)})
            return
        channel.provider = provider
        await channel.dispatcher.replace(made)


def _channel_key(table: VectorTable, generation: Generation) -> _Key:
    return (table.provider_of(generation), generation.embedding_model, generation.embedding_dimensions)


def _memory_key(table: VectorTable, generation: Generation) -> _Key:
    return (table.kind_of(generation), generation.embedding_model, generation.embedding_dimensions)


async def _keep_sending(dispatcher: Dispatcher) -> None:
    while True:
        try:
            await dispatcher.run()
        except Exception as e:  # noqa: BLE001  what waits is kept, and sent again
            _log.error("dispatcher failed", exc_info=e, extra={"action": "dispatcher_failed"})
            await asyncio.sleep(1)
