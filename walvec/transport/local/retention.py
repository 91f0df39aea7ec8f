"""What may be deleted, and the deleting, in small transactions.

Law: a record goes only when every group known for its topic has committed past it. A topic that no group has ever read
keeps everything (dead letters, changes that wait for their first embedder). Freed pages are reused; when most of the
file is free it shrinks. Next: `writer` calls it when the log is over its limit, `log` on a timer.
"""

from __future__ import annotations

import sqlite3

_BATCHES_AT_ONCE = 256
_PAGES_AT_ONCE = 4096
_FREE_AT_LEAST = 16 * 1024**2

_CONSUMED = """
SELECT p.topic, p.partition, min(coalesce(o.next, 0)) FROM partitions p
JOIN groups g ON g.topic = p.topic
LEFT JOIN offsets o ON o.topic = p.topic AND o.name = g.name AND o.partition = p.partition
GROUP BY p.topic, p.partition HAVING min(coalesce(o.next, 0)) > 0
"""


def used_bytes(connection: sqlite3.Connection) -> int:
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def drop_consumed(connection: sqlite3.Connection, cutoff_ms: int | None) -> bool:
    """Deletes consumed batches, those older than `cutoff_ms` (None = all). False: there was nothing to delete."""
    left = _BATCHES_AT_ONCE
    for topic, partition, floor in connection.execute(_CONSUMED).fetchall():
        rows = connection.execute(
            "SELECT rowid, size, base + count, timestamp_ms FROM batches WHERE topic = ? AND partition = ? "
            "AND base < ? ORDER BY base LIMIT ?",
            (topic, partition, floor, left),
        ).fetchall()
        gone: list[tuple[int]] = []
        freed = 0
        for rowid, size, following, timestamp_ms in rows:
            if following > floor or (cutoff_ms is not None and timestamp_ms > cutoff_ms):
                break
            gone.append((rowid,))
            freed += size
        if not gone:
            continue
        connection.executemany("DELETE FROM batches WHERE rowid = ?", gone)
        connection.execute(
            "UPDATE partitions SET bytes = bytes - ? WHERE topic = ? AND partition = ?", (freed, topic, partition)
        )
        left -= len(gone)
        if left <= 0:
            break
    return left < _BATCHES_AT_ONCE


def drop_doomed(connection: sqlite3.Connection) -> bool:
    """Deletes batches of deleted topics. False: none is left."""
    row = connection.execute("SELECT topic FROM doomed LIMIT 1").fetchone()
    if row is None:
        return False
    deleted = connection.execute(
        "DELETE FROM batches WHERE rowid IN (SELECT rowid FROM batches WHERE topic = ? LIMIT ?)",
        (row[0], _BATCHES_AT_ONCE),
    )
    if deleted.rowcount == 0:
        connection.execute("DELETE FROM doomed WHERE topic = ?", row)
    return True


def shrink(connection: sqlite3.Connection) -> bool:
    """Gives pages back to the file system while more than half of the file is free. False: no need."""
    free = _pragma(connection, "freelist_count")
    if free * _pragma(connection, "page_size") < _FREE_AT_LEAST or free * 2 < _pragma(connection, "page_count"):
        return False
    connection.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
    return True


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
