"""Consumer groups as rows: members, owners with a generation, committed offsets. Functions of one transaction.

Law: `generation` counts the changes of a partition's owner (and resets); whoever comes with an old one has lost it. A
function raises before it writes, never in between. Next: `consumer` calls them through the writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from walvec.transport.local.schema import starts
from walvec.transport.sharing import share


@dataclass(frozen=True, slots=True)
class Holding:
    """An owned partition: the fence for its commits, and where to read on."""

    generation: int
    offset: int


def found(connection: sqlite3.Connection, topic: int, group: str) -> None:
    """Makes the group known: from now on retention waits for it."""
    connection.execute("INSERT OR IGNORE INTO groups VALUES (?, ?)", (topic, group))
    connection.execute(
        "INSERT OR IGNORE INTO owners SELECT topic, ?, partition, NULL, 0 FROM partitions WHERE topic = ?",
        (group, topic),
    )


def members(connection: sqlite3.Connection, topic: int, group: str) -> list[int]:
    query = "SELECT id FROM members WHERE topic = ? AND name = ? ORDER BY id"
    return [row[0] for row in connection.execute(query, (topic, group))]


def owners(connection: sqlite3.Connection, topic: int, group: str) -> dict[int, tuple[int | None, int]]:
    query = "SELECT partition, member, generation FROM owners WHERE topic = ? AND name = ?"
    return {row[0]: (row[1], row[2]) for row in connection.execute(query, (topic, group))}


def join(connection: sqlite3.Connection, topic: int, group: str, process: int) -> int:
    found(connection, topic, group)
    cursor = connection.execute("INSERT INTO members (topic, name, process) VALUES (?, ?, ?)", (topic, group, process))
    return int(cursor.lastrowid or 0)


def leave(connection: sqlite3.Connection, member: int) -> None:
    connection.execute("DELETE FROM members WHERE id = ?", (member,))


def claim(connection: sqlite3.Connection, topic: int, group: str, member: int) -> dict[int, Holding] | None:
    """Takes what is free and due; returns all that the member owns now. None: it is no member any more."""
    known = members(connection, topic, group)
    if member not in known:
        return None
    held = owners(connection, topic, group)
    for partition in share(member, known, {p: owner for p, (owner, _) in held.items()}).claim:
        held[partition] = (member, held[partition][1] + 1)
        connection.execute(
            "UPDATE owners SET member = ?, generation = ? WHERE topic = ? AND name = ? AND partition = ?",
            (member, held[partition][1], topic, group, partition),
        )
    offsets = committed(connection, topic, group)
    return {p: Holding(generation, offsets[p]) for p, (owner, generation) in held.items() if owner == member}


def release(
    connection: sqlite3.Connection, topic: int, group: str, member: int, generations: Mapping[int, int]
) -> None:
    connection.executemany(
        "UPDATE owners SET member = NULL, generation = generation + 1 "
        "WHERE topic = ? AND name = ? AND partition = ? AND member = ? AND generation = ?",
        [(topic, group, partition, member, generation) for partition, generation in generations.items()],
    )


def commit(
    connection: sqlite3.Connection,
    topic: int,
    group: str,
    member: int,
    offsets: Mapping[int, tuple[int, int]],
) -> frozenset[int]:
    """`offsets`: generation and next offset by partition. Returns the partitions that are lost, unmoved."""
    held = owners(connection, topic, group)
    lost = frozenset(p for p, (generation, _) in offsets.items() if held.get(p) != (member, generation))
    connection.executemany(
        "INSERT INTO offsets VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = max(next, excluded.next)",
        [(topic, group, p, offset) for p, (_, offset) in offsets.items() if p not in lost],
    )
    return lost


def committed(connection: sqlite3.Connection, topic: int, group: str) -> dict[int, int]:
    earliest = starts(connection, topic)
    query = "SELECT partition, next FROM offsets WHERE topic = ? AND name = ?"
    stored = {row[0]: row[1] for row in connection.execute(query, (topic, group))}
    return {partition: max(first, stored.get(partition, first)) for partition, first in earliest.items()}


def reset(connection: sqlite3.Connection, topic: int, group: str, offsets: Mapping[int, int]) -> None:
    """Moves the group. The generation moves too: a commit of what was read before must not undo it."""
    found(connection, topic, group)
    earliest = starts(connection, topic)
    ends = dict(connection.execute("SELECT partition, next FROM partitions WHERE topic = ?", (topic,)))
    for partition, offset in offsets.items():
        target = min(max(offset, earliest[partition]), ends[partition])
        connection.execute(
            "INSERT INTO offsets VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
            (topic, group, partition, target),
        )
        connection.execute(
            "UPDATE owners SET generation = generation + 1 WHERE topic = ? AND name = ? AND partition = ?",
            (topic, group, partition),
        )
