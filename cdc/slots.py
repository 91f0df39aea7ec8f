"""A connection's publication and replication slot: what is there, and how they are made, changed and dropped.

Law: the publication exists before the slot does (on PostgreSQL 17 and older a slot that is older than its publication
cannot be read); a table whose identity would make the application's own UPDATEs fail is never published.
Next: `cdc.gate` judges what is found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from cdc.session import Session, source_errors
from walvec.contracts.errors import SourceRejected, TableChanged, WalvecError
from walvec.contracts.position import parse_lsn
from walvec.contracts.sources import SlotView

TableName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SlotState:
    """`confirmed`: 0 while the slot is still being created. `reason`: why it is lost."""

    confirmed: int
    lost: bool
    reason: str
    active: bool
    database: str


@dataclass(frozen=True, slots=True)
class SourceTableState:
    """A wanted source table. `published`: whole, under its own name.

    `mark`: of its place in the publication. A publication or a table that was taken away and put back has another, and
    so has a publication whose options were altered, even back to what they were (`xmin`). Empty = it has no place.
    """

    oid: int
    published: bool
    identity_ok: bool
    mark: str


async def _rows(session: Session, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    with source_errors():
        cursor = await session.execute(statement, arguments or None)
        return await cursor.fetchall() if cursor.description else []


async def _run(session: Session, statement: sql.Composed) -> None:
    with source_errors():
        await session.execute(statement)


async def server_version(session: Session) -> int:
    """For example 180004."""
    return int((await _rows(session, "SELECT current_setting('server_version_num')"))[0][0])


async def slot_state(session: Session, slot: str) -> SlotState | None:
    """None = there is no such slot."""
    found = await _rows(
        session,
        "SELECT confirmed_flush_lsn::text, wal_status, active, database::text, to_jsonb(s)->>'invalidation_reason'"
        " FROM pg_replication_slots s WHERE slot_name = %s",
        slot,
    )
    if not found:
        return None
    confirmed, wal_status, active, database, invalidation = found[0]
    lost = wal_status == "lost" or bool(invalidation)
    return SlotState(parse_lsn(confirmed) if confirmed else 0, lost, invalidation or "lost", active, database)


async def begin_preparing(session: Session, slot: str) -> bool:
    """Publication, slot and the decision what to read are one reader's at a time; the slot itself locks only whoever
    streams. False = another one is at it. A dead one's connection is found out within half a minute."""
    found = await _rows(
        session,
        "SELECT pg_try_advisory_lock(hashtextextended(%s, 0)), set_config('tcp_keepalives_idle', '10', false),"
        " set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '4', false)",
        slot,
    )
    return bool(found[0][0])


async def end_preparing(session: Session, slot: str) -> None:
    """From now on the slot is the lock; the session's end does the same."""
    await _rows(session, "SELECT pg_advisory_unlock(hashtextextended(%s, 0))", slot)


async def slot_view(session: Session, slot: str) -> SlotView:
    """Seen from outside: how much the server keeps for it. On a standby, up to what was replayed there."""
    found = await _rows(
        session,
        "SELECT active, coalesce(wal_status, 'reserved'), pg_wal_lsn_diff(now.lsn, restart_lsn)::float8,"
        " pg_wal_lsn_diff(now.lsn, confirmed_flush_lsn)::float8 FROM pg_replication_slots,"
        " LATERAL (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
        "   ELSE pg_current_wal_lsn() END AS lsn) now WHERE slot_name = %s",
        slot,
    )
    if not found:
        return SlotView()
    active, status, retained, unconfirmed = found[0]
    return SlotView(status, bool(active), max(0.0, retained or 0.0), max(0.0, unconfirmed or 0.0))


async def create_slot(session: Session, slot: str, version: int) -> int:
    """The LSN from which it streams. Waits for the write transactions that are open at the source (`slot_blockers`)."""
    failover = ", failover => NOT pg_is_in_recovery()" if version >= 170000 else ""
    found = await _rows(
        session, f"SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput'{failover})", slot
    )
    return parse_lsn(found[0][0])


async def slot_blockers(session: Session) -> list[str]:
    """Who holds a write transaction open, oldest first, as `pid 123 (application, user) since …`."""
    found = await _rows(
        session,
        "SELECT format('pid %s (%s, %s) since %s', pid, application_name, usename, xact_start)"
        " FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
        " UNION ALL SELECT format('prepared transaction %L', gid) FROM pg_prepared_xacts LIMIT 20",
    )
    return [row[0] for row in found]


async def drop_slot(session: Session, slot: str) -> None:
    """Raises SlotInUse while somebody reads it."""
    await _rows(
        session,
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
        slot,
    )


async def drop_publication(session: Session, publication: str) -> None:
    await _run(session, sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))


async def publishes_all(session: Session, publication: str) -> bool | None:
    """Whether it publishes every operation, under the root of partitions; None = there is none."""
    found = await _rows(
        session,
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot"
        " FROM pg_publication WHERE pubname = %s",
        publication,
    )
    return bool(found[0][0]) if found else None


async def ensure_publication(session: Session, publication: str, version: int) -> bool:
    """Makes it, or gives it back the options it needs. True = it was not there, or did not publish everything."""
    options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
    if version >= 180000:
        options += ", publish_generated_columns = stored"
    found = await publishes_all(session, publication)
    if found:
        return False
    verb = sql.SQL("ALTER PUBLICATION {} SET ({})") if found is not None else sql.SQL("CREATE PUBLICATION {} WITH ({})")
    await _run(session, verb.format(sql.Identifier(publication), sql.SQL(options)))
    return True


async def source_tables(
    session: Session, publication: str, wanted: Iterable[TableName]
) -> Mapping[TableName, SourceTableState]:
    """Those that exist. A table that is published with a row filter or a column list counts as not published."""
    names = list(wanted)
    found = await _rows(
        session,
        "SELECT n.nspname::text, c.relname::text, c.oid::bigint,"
        " coalesce((SELECT format('%%s.%%s.%%s', p.oid, p.xmin, r.oid) FROM pg_publication_rel r"
        "   JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %s AND r.prrelid = c.oid), ''),"
        " EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        "   WHERE p.pubname = %s AND r.prrelid = c.oid"
        "   AND to_jsonb(r)->>'prqual' IS NULL AND to_jsonb(r)->>'prattrs' IS NULL)"
        " AND EXISTS (SELECT FROM pg_publication_tables t"
        "   WHERE t.pubname = %s AND t.schemaname = n.nspname AND t.tablename = c.relname),"
        " c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid"
        "   AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)"
        " FROM unnest(%s::text[], %s::text[]) AS w (nsp, rel)"
        " JOIN pg_namespace n ON n.nspname = w.nsp JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel"
        " WHERE c.relkind IN ('r', 'p')",
        publication,
        publication,
        publication,
        [schema for schema, _ in names],
        [name for _, name in names],
    )
    return {(row[0], row[1]): SourceTableState(row[2], row[4], row[5], row[3]) for row in found}


async def publish(session: Session, publication: str, table: TableName, state: SourceTableState) -> None:
    """Adds the table, whole. Raises TableChanged or SourceRejected, which concern this table alone."""
    schema, name = table
    if not state.identity_ok:
        raise TableChanged(
            f"{schema}.{name} has no replica identity: publishing it would make the application's own UPDATE and "
            "DELETE fail.",
            f'Give it a primary key, or ALTER TABLE "{schema}"."{name}" REPLICA IDENTITY FULL; then resume the table.',
        )
    target = sql.Identifier(schema, name)
    add = sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}").format(sql.Identifier(publication), target)
    drop = sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}").format(sql.Identifier(publication), target)
    present = await _rows(
        session,
        "SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        " WHERE p.pubname = %s AND r.prrelid = %s::oid",
        publication,
        state.oid,
    )
    try:
        if present:  # with a row filter or a column list, or hidden behind its partitioned parent
            await _run(session, drop)
        await _run(session, add)
    except SourceRejected as e:
        raise SourceRejected(
            f"{schema}.{name} cannot be published: {e.message}",
            f'Run as a superuser: ALTER TABLE "{schema}"."{name}" OWNER TO the user of the connection, or add the '
            f"table to publication {publication} by hand; then resume the table.",
        ) from e
    after = (await source_tables(session, publication, [table])).get(table)
    if after is None or not after.published:
        raise TableChanged(
            f"{schema}.{name} is a partition of a table that is published as a whole.",
            "Use the partitioned table in the definition.",
        )


async def unpublish(session: Session, publication: str, wanted: Iterable[TableName]) -> None:
    """Drops the tables that nobody wants any more, so that the server sends them no longer."""
    keep = set(wanted)
    for schema, name in await _members(session, publication):
        if (schema, name) not in keep:
            statement = sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}")
            try:
                await _run(session, statement.format(sql.Identifier(publication), sql.Identifier(schema, name)))
            except WalvecError as e:
                if (schema, name) not in await _members(session, publication):
                    continue  # another process was faster: the reader and a removal both see to it
                raise SourceRejected(
                    f"{schema}.{name} cannot be taken out of {publication}: {e.message}", e.cure
                ) from e


async def _members(session: Session, publication: str) -> set[tuple[str, str]]:
    """Schema and name of the tables that it names."""
    found = await _rows(
        session,
        "SELECT n.nspname::text, c.relname::text FROM pg_publication_rel r"
        " JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = %s",
        publication,
    )
    return {(schema, name) for schema, name in found}


async def transaction_id(session: Session) -> int:
    """`pg_current_xact_id()`: every transaction that may have begun before now has a lower one."""
    found = await _rows(
        session,
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_snapshot_xmax(pg_current_snapshot())"
        " ELSE pg_current_xact_id() END::text",
    )
    return int(found[0][0])


async def setting(session: Session, name: str) -> str:
    return str((await _rows(session, "SELECT current_setting(%s)", name))[0][0])
