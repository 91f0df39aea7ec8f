"""A definition's revision, so that two writers do not overwrite each other (ETag and If-Match). Pure.

It covers what a user may say of a vector table, in the form that was said last, and nothing that roles write: progress,
states and a swap leave it as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from walvec.contracts.errors import NotFound, PreconditionFailed
from walvec.definitions.model import VectorTable


def etag(table: VectorTable) -> str:
    """Of the wanted definition: the one that is being built, else the active one's."""
    wanted = table.building or table.active
    said = {
        "id": table.id,
        "name": table.name,
        "connection": table.connection_id,
        "provider": table.provider_of(wanted),
        "source": [table.source_schema, table.source_table, None if table.source is None else asdict(table.source)],
        "primary_key": table.raw_primary_key,
        "store": table.store,
        "mode": table.mode,
        "backfill": table.backfill,
        "sync_mode": table.sync_mode,
        "keep_previous": table.keep_previous,
        "columns": [asdict(c) for c in wanted.columns],
        "separator": wanted.separator,
        "model": [wanted.embedding_model, wanted.embedding_dimensions],
        "index": dict(wanted.index),
        "keep_embedding_columns": wanted.keep_embedding_columns,
    }
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def check(table: VectorTable, wanted: str | None) -> None:
    """Raises PreconditionFailed unless `wanted` is the table's revision now, or None."""
    if wanted is not None and wanted != etag(table):
        raise PreconditionFailed(
            f"vector table {table.name!r} was changed meanwhile.", "Read it again and make the change anew."
        )


def gone(table: VectorTable) -> NotFound:
    """Of a revision that was seen of a table that is deleted: it is not entered again, what belonged to it goes."""
    return NotFound(f"vector table {table.name!r} was deleted meanwhile.")
