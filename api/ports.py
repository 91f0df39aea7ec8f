"""What the API needs of the other roles' adapters; the command line plugs them in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from walvec.contracts.sources import Check, RowCount, SlotView, SourceIdentity, SourceTable
from walvec.contracts.stores import Differences, Filter, Hit, Place
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, VectorTable
from walvec.transport.records import StoredRecord


class Source(Protocol):
    """Implemented by cdc.source.SourceAccess. Raises SourceUnavailable, SourceRejected, DefinitionError."""

    async def test(self, connection: Connection) -> float:
        """Connects and asks; latency in milliseconds."""

    async def doctor(self, connection: Connection, tables: Sequence[VectorTable]) -> list[Check]:
        """The whole preflight: server, rights, slots, and each table's key, identity and publication."""

    async def inspect(self, connection: Connection, source_table: str) -> SourceTable:
        """Resolves a name (quoted exact; unquoted exact first, then folded) and reads the catalog."""

    async def count(self, connection: Connection, table: VectorTable) -> RowCount:
        """Exact when that takes less than a second."""

    async def slot(self, connection: Connection) -> SlotView:
        """What the server keeps for walvec's slot. One short query."""

    async def written(self, connection: Connection) -> int:
        """The LSN that the server writes at now: all commits that anybody has heard of lie below it."""

    async def emit_marker(self, connection: Connection) -> int:
        """A transactional logical message; returns an LSN such that everything committed before the call is below."""

    async def judge_topic(
        self, connection: Connection, table: VectorTable, records: Mapping[int, Sequence[StoredRecord]]
    ) -> Check:
        """Whether these records (by partition) of the table's `source` topic are changes of its source table."""

    async def flushed(self, connection: Connection, slot: str) -> tuple[int, int]:
        """(confirmed LSN of somebody else's slot, LSN that the server writes at now). Raises SourceRejected."""

    async def unpublished(
        self, connection: Connection, tables: Sequence[VectorTable], marks: Mapping[str, str]
    ) -> list[str]:
        """Names of the vector tables whose changes the server does not send now, or that somebody has published again
        since cdc stored these marks. Before cdc publishes such a table again, or stores its new mark, it has opened the
        rebackfill that makes up for what was not sent."""

    def scan(
        self, connection: Connection, table: VectorTable, generation: Generation, *, only: Sequence[bytes] | None = None
    ) -> AsyncIterator[Sequence[tuple[bytes, str | None]]]:
        """(canonical key, composed text or None) of every row, or of `only` these keys, in batches."""

    async def identity(self, connection: Connection) -> SourceIdentity:
        """Which database of which server this is."""

    async def unpublish(self, connection: Connection, wanted: Sequence[VectorTable]) -> None:
        """Takes out of the connection's publication what none of these vector tables wants."""

    async def release(self, connection: Connection) -> None:
        """Drops the connection's slot and publication; whoever still reads the slot is ended. Idempotent."""


class SearchStore(Protocol):
    """Implemented by sink.stores.registry.Stores, which picks the adapter by the table's `store` and `mode`."""

    async def ensure(self, table: VectorTable, generation: Generation) -> None: ...

    async def show(self, table: VectorTable, generation: Generation) -> None: ...

    async def drop(self, table: VectorTable, generation: int | None = None) -> None: ...

    async def remove(self, table: VectorTable, dsn: str | None) -> None:
        """Drops all of a vector table that is not defined any more; `dsn`: of its connection, for mode platform."""

    async def count(self, table: VectorTable, generation: Generation) -> int: ...

    async def search(
        self,
        table: VectorTable,
        generation: Generation,
        vector: np.ndarray,
        *,
        limit: int,
        where: Filter | None = None,
        min_score: float | None = None,
        after: Place | None = None,
        vectors: bool = False,
    ) -> list[Hit]: ...

    async def compare(
        self,
        table: VectorTable,
        generation: Generation,
        rows: AsyncIterator[Sequence[tuple[bytes, str | None]]],
        *,
        only: Sequence[bytes] | None = None,
    ) -> Differences: ...


class Models(Protocol):
    """Implemented by embedder.models.ModelAccess: providers as the API sees them."""

    async def embed_query(self, provider: EmbeddingProvider, generation: Generation, text: str) -> np.ndarray: ...

    def defaults(self, provider: str) -> tuple[str | None, int | None]:
        """Default model and its dimensions of a provider kind, where known."""

    async def check(self, provider: EmbeddingProvider, model: str, dimensions: int | None) -> int:
        """The dimensions the model will give. Raises DefinitionError when `dimensions` do not fit what is known
        (static: the model's own; openai: catalogue where known). No paid call is made."""

    def check_provider(self, provider: EmbeddingProvider) -> None:
        """Raises DefinitionError for one that nobody would answer: without an address, or without its vendor's key."""

    def providers(self) -> Mapping[str, Sequence[tuple[str, int]]]:
        """Known provider kinds with their model catalogue."""
