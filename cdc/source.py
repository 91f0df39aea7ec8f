"""The source database for the other roles: `api.ports.Source` and `embedder.ports.RowReader`.

Law: few, reused sessions; safe beside a running `cdc`, in any process. The command line plugs it in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from time import perf_counter

import psycopg
from psycopg import sql

from cdc import catalog, preflight, reading, slots
from cdc.bridge_batch import judge
from cdc.counting import count_query
from cdc.session import Sessions, open_session, query_error, source_errors
from walvec.contracts.errors import DecodeError, SourceRejected, SourceUnavailable
from walvec.contracts.position import parse_lsn
from walvec.contracts.sources import Check, RowCount, RowsRead, SlotView, SourceIdentity, SourceTable
from walvec.contracts.values import decode_key
from walvec.definitions.model import Connection, Generation, VectorTable
from walvec.transport.records import StoredRecord

log = logging.getLogger(__name__)

_COUNT_TIMEOUT_MS = 900


class SourceAccess:
    """Reads of source databases, by connection."""

    def __init__(self, sessions: Sessions | None = None) -> None:
        self._sessions = sessions or Sessions()

    async def test(self, connection: Connection) -> float:
        """Connects anew and asks; latency in milliseconds."""
        start = perf_counter()
        session = await open_session(connection.dsn)
        try:
            with source_errors():
                await session.execute("SELECT 1")
        finally:
            await session.close()
        return (perf_counter() - start) * 1000

    async def doctor(self, connection: Connection, tables: Sequence[VectorTable]) -> list[Check]:
        """Every check; a source that cannot be reached is a failed check of its own."""
        try:
            async with self._sessions.borrow(connection) as session:
                return await preflight.doctor(session, connection, tables)
        except (SourceUnavailable, SourceRejected) as e:
            return [Check("connection", False, e.message, e.cure)]

    async def inspect(self, connection: Connection, source_table: str) -> SourceTable:
        async with self._sessions.borrow(connection) as session:
            return await catalog.inspect(session, source_table)

    async def count(self, connection: Connection, table: VectorTable) -> RowCount:
        async with self._sessions.borrow(connection) as session:
            found = await reading.target(session, table, table.active)
            encoding = session.info.parameter_status("server_encoding") or "SQL_ASCII"
            query = count_query(found, table.active, encoding=encoding)
            try:
                async with session.transaction():
                    await session.execute(f"SET LOCAL statement_timeout = {_COUNT_TIMEOUT_MS}")
                    row = await (await session.execute(query)).fetchone()
            except psycopg.errors.QueryCanceled:
                return RowCount(found.estimated_rows, exact=False)
            assert row is not None
            return RowCount(int(str(row[0])), exact=True)

    async def slot(self, connection: Connection) -> SlotView:
        async with self._sessions.borrow(connection) as session:
            return await slots.slot_view(session, connection.slot)

    async def written(self, connection: Connection) -> int:
        async with self._sessions.borrow(connection) as session:
            # what is inserted, not what is written: a commit that did not wait for the disk counts as well
            written = await catalog.fetch_one(
                session,
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() "
                "ELSE pg_current_wal_insert_lsn() END::text",
            )
            return parse_lsn(written)

    async def emit_marker(self, connection: Connection) -> int:
        async with self._sessions.borrow(connection) as session:
            return await reading.emit_mark(session, '{"drain":1}')

    async def judge_topic(
        self, connection: Connection, table: VectorTable, records: Mapping[int, Sequence[StoredRecord]]
    ) -> Check:
        async with self._sessions.borrow(connection) as session:
            leaves, enums = await catalog.leaves_and_enums(session, table.source_schema, table.source_table)
        return judge(table, records, leaves=leaves, enums=enums)

    async def flushed(self, connection: Connection, slot: str) -> tuple[int, int]:
        async with self._sessions.borrow(connection) as session:
            state = await slots.slot_state(session, slot)
            if state is None:
                raise SourceRejected(
                    f"there is no replication slot {slot}.",
                    "Name the connector's slot (slot.name) in the definition's source, or none.",
                )
            written = await catalog.fetch_one(session, "SELECT pg_current_wal_lsn()::text")
        return state.confirmed, parse_lsn(written)

    async def unpublished(
        self, connection: Connection, tables: Sequence[VectorTable], marks: Mapping[str, str]
    ) -> list[str]:
        names = {(t.source_schema, t.source_table) for t in tables}
        async with self._sessions.borrow(connection) as session:
            states = await slots.source_tables(session, connection.publication, names)
            whole = await slots.publishes_all(session, connection.publication)
        found = {name: state.mark for name, state in states.items() if state.published and whole}
        marked = [(t, found.get((t.source_schema, t.source_table))) for t in tables]
        return [t.name for t, mark in marked if mark is None or marks.get(t.id, mark) != mark]

    async def read_rows(
        self, connection: Connection, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> RowsRead:
        """One query for all keys. A row counts for the key that its own values spell: where Postgres calls two
        spellings equal (citext, 1.0 and 1.00) they are two keys in the log and here."""
        async with self._sessions.borrow(connection) as session:
            found = await reading.target(session, table, generation)
            shape = found.shape
            lines, snapshot = await reading.read_keys(session, found, [decode_key(k, shape.key_codecs) for k in keys])
        wanted = set(keys)
        rows = {key: shape.read_row(line) for line in lines if (key := shape.key(line)) in wanted}
        return RowsRead(rows, snapshot)

    async def scan(
        self, connection: Connection, table: VectorTable, generation: Generation, *, only: Sequence[bytes] | None = None
    ) -> AsyncIterator[Sequence[tuple[bytes, str | None]]]:
        """(canonical key, composed text or None), in batches, from one snapshot; memory is bounded by a batch."""
        async with self._sessions.borrow(connection) as session:
            found = await reading.target(session, table, generation)
            shape = found.shape
            if only is None:
                async for lines in reading.scan(session, found):
                    yield [(shape.key(line), shape.text(line)) for line in lines]
                return
            texts, wanted = [], set(only)
            for key in wanted:
                try:
                    texts.append(decode_key(key, shape.key_codecs))
                except DecodeError:
                    continue  # a key of another table's shape has no row here, so it is not among the answers
            async for lines in reading.scan_keys(session, found, texts):
                yield [(key, shape.text(line)) for line in lines if (key := shape.key(line)) in wanted]

    async def identity(self, connection: Connection) -> SourceIdentity:
        """Asked over a new session. Some providers close the system identifier to their users: then it stays empty."""
        session = await open_session(connection.dsn)
        try:
            database = str(await catalog.fetch_one(session, "SELECT current_database()"))
            try:
                found = await catalog.fetch_one(session, "SELECT system_identifier::text FROM pg_control_system()")
            except SourceRejected:
                found = None
        finally:
            await session.close()
        return SourceIdentity(str(found or ""), database)

    async def unpublish(self, connection: Connection, wanted: Sequence[VectorTable]) -> None:
        """Takes out of the publication what none of these vector tables wants."""
        async with self._sessions.borrow(connection) as session:
            names = {(t.source_schema, t.source_table) for t in wanted}
            await slots.unpublish(session, connection.publication, names)

    async def release(self, connection: Connection) -> None:
        """Drops slot and publication. A reader that still holds the slot is given a moment, then ended."""
        async with self._sessions.borrow(connection) as session:
            for attempt in range(50):
                try:
                    await session.execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                        (connection.slot,),
                    )
                    break
                except psycopg.errors.ObjectInUse as e:
                    if attempt == 49:
                        raise query_error(e) from e
                    if attempt == 20:
                        log.info("slot reader is ended", extra={"action": "slot_reader_ended", "slot": connection.slot})
                        await session.execute(
                            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                            " WHERE slot_name = %s AND active_pid IS NOT NULL",
                            (connection.slot,),
                        )
                    await asyncio.sleep(0.1)
            await session.execute(
                sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(connection.publication))
            )
        log.info("source released", extra={"action": "source_released", "connection": connection.id})

    async def close(self) -> None:
        await self._sessions.close()
