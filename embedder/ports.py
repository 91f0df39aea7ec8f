"""What the embedder needs of the store and the source; the command line plugs in `sink.stores` and `cdc.source`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from walvec.contracts.sources import RowsRead
from walvec.contracts.stores import StoredVersion
from walvec.definitions.model import Connection, Generation, VectorTable


class StoreLookup(Protocol):
    """May lie by being late: the store itself checks every claim. Raises StoreUnavailable."""

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]: ...

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Vectors by content hash, tombstones' too (a key change or a re-insert pays nothing)."""


class RowReader(Protocol):
    async def read_rows(
        self, connection: Connection, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> RowsRead:
        """Rows by key with the snapshot they were read in. Raises SourceUnavailable, SourceRejected, TableChanged."""
