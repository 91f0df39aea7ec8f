"""The store port on Postgres with pgvector: storage, view and state here; writing, searching and comparing beside it.

Next: `pgvector_layout.py` (what is stored), `pgvector_apply.py` (how it is written).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence, Set

import numpy as np
import psycopg

from sink.stores.pgvector_apply import apply_records, purge_tombstones
from sink.stores.pgvector_compare import compare, key_ids
from sink.stores.pgvector_indexes import build_indexes
from sink.stores.pgvector_layout import (
    FIRST_HALFVEC_VERSION,
    MAX_DIMENSIONS,
    MAX_VECTOR_INDEX,
    Layout,
    create_state,
    ident,
    layout_of,
    relation_name,
    wanted_types,
)
from sink.stores.pgvector_search import parse_vectors, search
from sink.stores.pgvector_session import Session, Sessions
from sink.stores.pgvector_view import remade, show
from walvec.contracts.errors import StoreRejected, ViewTaken
from walvec.contracts.keys import key_hex
from walvec.contracts.position import Position, parse_lsn
from walvec.contracts.stores import Applied, Differences, Filter, Hit, Place, StoredVersion
from walvec.contracts.vectors import VectorRecord
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.views import STATE_TABLE, check_view

_log = logging.getLogger(__name__)
_ENSURE_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('walvec ensure', 77))"
_LACKING = (
    psycopg.errors.SyntaxError,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidName,
    psycopg.errors.FeatureNotSupported,
)


class PgvectorStore:
    """`own_database`: it is the source database itself (platform mode), so user-defined types are there."""

    def __init__(
        self, dsn: str, schema: str, *, own_database: bool = False, sessions: tuple[Sessions, Sessions] | None = None
    ) -> None:
        self._dsn = dsn
        # the second: index builds and comparisons must not keep writers waiting
        self._sessions, self._slow = sessions or (
            Sessions(dsn, guarded=own_database),
            Sessions(dsn, limit=2, guarded=own_database),
        )
        self._schema = schema
        self._own_database = own_database
        self._layouts: dict[tuple[str, int], tuple[Generation, Layout]] = {}

    def beside(self, schema: str) -> PgvectorStore:
        """Another schema of the same database, over the same connections; closed together."""
        both = (self._sessions, self._slow)
        return PgvectorStore(self._dsn, schema, own_database=self._own_database, sessions=both)

    # ---------------------------------------------------------------- storage

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        check_view(table, generation)
        if generation.embedding_dimensions > MAX_DIMENSIONS:
            raise StoreRejected(
                f"pgvector stores at most {MAX_DIMENSIONS} dimensions, not {generation.embedding_dimensions}.",
                "Choose fewer `embedding_dimensions`, or store: qdrant.",
            )
        self._layouts.pop((table.id, generation.number), None)
        async with self._sessions.session() as session:
            async with session.conn.transaction():
                await session.conn.execute(_ENSURE_LOCK.encode())
                await self._extension(session, generation)
                await self._create_state(session)
                await self._check_names(session, table)
                await self._create(session, table, generation)
            session.staging.clear()

    async def _extension(self, session: Session, generation: Generation) -> None:
        conn = session.conn
        version = await _extension_version(session)
        if version is None:
            try:
                async with conn.transaction():
                    await conn.execute(b"CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.errors.InsufficientPrivilege as e:
                raise StoreRejected(
                    "walvec may not create the extension pgvector in the vector store's database.",
                    "Run there as a superuser: CREATE EXTENSION vector;",
                ) from e
            except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as e:
                raise StoreRejected(
                    "The vector store's server does not have the extension pgvector.",
                    "Install pgvector 0.5 or newer on the server, then run: CREATE EXTENSION vector;",
                ) from e
            version = await _extension_version(session)
        needed = FIRST_HALFVEC_VERSION if generation.embedding_dimensions > MAX_VECTOR_INDEX else (0, 5)
        if version is None or version < needed:
            raise StoreRejected(
                f"The extension pgvector is older than {needed[0]}.{needed[1]}, which this vector table needs.",
                "Install a newer pgvector, then run: ALTER EXTENSION vector UPDATE;",
            )
        await session.find_extension()

    async def _create_state(self, session: Session) -> None:
        if await self._has_state(session):
            return
        schema, state = create_state(self._schema)
        try:
            cur = await session.conn.execute(b"SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,))
            if await cur.fetchone() is None:
                await session.conn.execute(schema.encode())
            await session.conn.execute(state.encode())
        except psycopg.errors.InsufficientPrivilege as e:
            cur_user = session.conn.info.user
            raise StoreRejected(
                f"walvec may not create its schema {self._schema} in database {session.conn.info.dbname}.",
                f"Run there: GRANT CREATE ON DATABASE {ident(session.conn.info.dbname)} TO {ident(cur_user)};",
            ) from e

    async def _check_names(self, session: Session, table: VectorTable) -> None:
        """The view's name must be free, or be this table's own."""
        cur = await session.conn.execute(
            f"SELECT c.relkind::text, EXISTS (SELECT FROM {ident(self._schema)}.{ident(STATE_TABLE)} o "
            "WHERE o.view_name = %s AND o.table_id = %s) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = %s".encode(),
            (table.view_name, table.id, self._schema, table.view_name),
        )
        found = await cur.fetchone()
        cur = await session.conn.execute(
            f"SELECT 1 FROM {ident(self._schema)}.{ident(STATE_TABLE)} "
            "WHERE view_name = %s AND table_id <> %s".encode(),
            (table.view_name, table.id),
        )
        other = await cur.fetchone()
        if other is not None or (found is not None and (found[0] != "v" or not found[1])):
            what = "another vector table's view" if other is not None else "something else"
            raise (ViewTaken if other is not None else StoreRejected)(
                f"Vector table {table.name!r} would be the view {self._schema}.{table.view_name}, but that name is "
                f"taken by {what}.",
                "Choose another name for the vector table.",
            )

    async def _create(self, session: Session, table: VectorTable, generation: Generation) -> None:
        conn = session.conn
        state = f"{ident(self._schema)}.{ident(STATE_TABLE)}"
        cur = await conn.execute(
            f"SELECT relation, dimensions FROM {state} WHERE table_id = %s AND generation = %s FOR UPDATE".encode(),
            (table.id, generation.number),
        )
        row = await cur.fetchone()
        relation = row[0] if row is not None else relation_name(table, generation.number)
        if row is not None and row[1] != generation.embedding_dimensions:
            raise StoreRejected(
                f"The storage {relation} has {row[1]} dimensions, generation {generation.number} of "
                f"{table.name!r} wants {generation.embedding_dimensions}.",
                "Another number of dimensions needs a new generation: change the vector table and run a backfill.",
            )
        types = await self._resolve(session, generation)
        layout = layout_of(self._schema, relation, generation, types, (0, 8))
        stored = await self._stored_types(session, relation)
        if not stored:
            for statement in layout.create_table():
                await conn.execute(statement.encode())
            if row is not None:  # its table was dropped by hand: what it knew is gone with it
                await conn.execute(
                    f"DELETE FROM {state} WHERE table_id = %s AND generation = %s".encode(),
                    (table.id, generation.number),
                )
        else:
            await self._retype(session, table, generation.number, layout, stored, types)
        await conn.execute(
            f"INSERT INTO {state} (table_id, generation, relation, view_name, dimensions) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING".encode(),
            (table.id, generation.number, relation, table.view_name, generation.embedding_dimensions),
        )

    async def _resolve(self, session: Session, generation: Generation) -> dict[str, str]:
        """Keeps a type where this database has it; else its text is stored."""
        types: dict[str, str] = {}
        for physical, wanted in wanted_types(generation, own_database=self._own_database).items():
            types[physical] = "text"
            if wanted is None:
                continue
            try:
                async with session.conn.transaction():
                    cur = await session.conn.execute(
                        b"SELECT to_regtype(%s) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = "
                        b"to_regtype(%s) AND t.typtype = 'p')",
                        (wanted, wanted),
                    )
                    row = await cur.fetchone()
                    if wanted in ("xml", "xml[]"):  # every server knows its name, not every one was built with it
                        await session.conn.execute(b"SELECT xml '<x/>'")
            except _LACKING:
                continue
            if row is not None and row[0]:
                types[physical] = wanted
        return types

    async def _stored_types(self, session: Session, relation: str) -> dict[str, str]:
        cur = await session.conn.execute(
            b"SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a "
            b"WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
            (f"{ident(self._schema)}.{ident(relation)}",),
        )
        return dict(await cur.fetchall())

    async def _retype(
        self,
        session: Session,
        table: VectorTable,
        number: int,
        layout: Layout,
        stored: Mapping[str, str],
        types: Mapping[str, str],
    ) -> None:
        """A source column was widened, or got a type that the store did not have: the storage follows."""
        conn = session.conn
        changes = []
        for physical, wanted in types.items():
            if physical not in stored:
                changes.append(f"ADD COLUMN {physical} {wanted}")
                continue
            cur = await conn.execute(b"SELECT to_regtype(%s) = to_regtype(%s)", (wanted, stored[physical]))
            row = await cur.fetchone()
            if row is None or not row[0] or wanted.partition("(")[1:] != stored[physical].partition("(")[1:]:
                cast = f"CAST(CAST({physical} AS text) AS {wanted})"
                changes.append(f"ALTER COLUMN {physical} TYPE {wanted} USING {cast}")
        if not changes:
            return
        cur = await conn.execute(
            f"SELECT view_name, shown FROM {layout.state} WHERE table_id = %s AND generation = %s "
            "AND shown IS NOT NULL AND to_regclass(format('%%I.%%I', %s::text, view_name)) IS NOT NULL".encode(),
            (table.id, number, self._schema),
        )
        # a column that a view shows cannot be changed; whoever reads it meets it before and after
        async with remade(conn, [(f"{ident(self._schema)}.{ident(view)}", s) for view, s in await cur.fetchall()]):
            await conn.execute(f"ALTER TABLE {layout.table} {', '.join(changes)}".encode())

    async def show(self, table: VectorTable, generation: Generation) -> None:
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)

            async def begin() -> None:
                await session.conn.execute(_ENSURE_LOCK.encode())
                await self._check_names(session, table)

            await show(session.conn, table, generation, layout, begin)

    async def generations(self, table: VectorTable) -> list[int]:
        state = f"{ident(self._schema)}.{ident(STATE_TABLE)}"
        async with self._sessions.session() as session:
            if not await self._has_state(session):
                return []
            cur = await session.conn.execute(
                f"SELECT generation FROM {state} WHERE table_id = %s ORDER BY generation".encode(), (table.id,)
            )
            return [number for (number,) in await cur.fetchall()]

    async def _has_state(self, session: Session) -> bool:
        cur = await session.conn.execute(b"SELECT to_regclass(%s)", (f"{ident(self._schema)}.{ident(STATE_TABLE)}",))
        row = await cur.fetchone()
        return row is not None and row[0] is not None

    async def drop(self, table: VectorTable, generation: int | None = None) -> None:
        for key in [k for k in self._layouts if k[0] == table.id and generation in (None, k[1])]:
            del self._layouts[key]
        state = f"{ident(self._schema)}.{ident(STATE_TABLE)}"
        async with self._sessions.session() as session:
            conn = session.conn
            async with conn.transaction():
                await conn.execute(_ENSURE_LOCK.encode())
                if not await self._has_state(session):
                    return
                if generation is not None:  # somebody may read it still: nobody waits behind us for his end
                    await conn.execute(b"SET LOCAL lock_timeout = '1s'")
                cur = await conn.execute(
                    f"DELETE FROM {state} WHERE table_id = %s AND (%s::integer IS NULL OR generation = %s "
                    "AND shown IS NULL) RETURNING relation, view_name".encode(),
                    (table.id, generation, generation),
                )
                for relation, view_name in await cur.fetchall():
                    if generation is None:
                        await conn.execute(f"DROP VIEW IF EXISTS {ident(self._schema)}.{ident(view_name)}".encode())
                    await conn.execute(f"DROP TABLE IF EXISTS {ident(self._schema)}.{ident(relation)}".encode())

    async def remove(self, table: VectorTable) -> None:
        """Drops the table with its view; in a source database, with the last one, walvec's schema as well."""
        await self.drop(table)
        if not self._own_database:
            return
        state = f"{ident(self._schema)}.{ident(STATE_TABLE)}"
        async with self._sessions.session() as session, session.conn.transaction():
            await session.conn.execute(_ENSURE_LOCK.encode())
            cur = await session.conn.execute(b"SELECT to_regclass(%s)", (state,))
            row = await cur.fetchone()
            if row is not None and row[0] is not None:
                cur = await session.conn.execute(f"SELECT 1 FROM {state} LIMIT 1".encode())
                if await cur.fetchone() is not None:
                    return
                await session.conn.execute(f"DROP TABLE {state}".encode())
            # a schema that an administrator made stays: walvec could not make it again
            cur = await session.conn.execute(
                b"SELECT 1 FROM pg_namespace n WHERE n.nspname = %s AND pg_has_role(n.nspowner, 'USAGE')"
                b" AND has_database_privilege(current_database(), 'CREATE')",
                (self._schema,),
            )
            if await cur.fetchone() is None:
                return
            try:
                async with session.conn.transaction():
                    await session.conn.execute(f"DROP SCHEMA {ident(self._schema)}".encode())
            except psycopg.errors.DependentObjectsStillExist:
                _log.info("schema stays, others use it", extra={"action": "schema_kept", "schema": self._schema})

    async def _layout(self, session: Session, table: VectorTable, generation: Generation) -> Layout:
        """As the storage is, whoever made it; kept until the definition changes."""
        kept = self._layouts.get((table.id, generation.number))
        if kept is not None and (kept[0] is generation or _same_storage(kept[0], generation)):
            return kept[1]
        try:
            cur = await session.conn.execute(
                f"SELECT relation FROM {ident(self._schema)}.{ident(STATE_TABLE)} WHERE table_id = %s "
                "AND generation = %s".encode(),
                (table.id, generation.number),
            )
            row = await cur.fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            row = None
        types = await self._stored_types(session, row[0]) if row is not None else {}
        missing = wanted_types(generation, own_database=True).keys() - types.keys()
        if row is None or not types or missing:
            raise StoreRejected(
                f"Vector table {table.name!r} has no storage for generation {generation.number}.",
                "Run `walvec apply` or `walvec backfill` on it; walvec makes its storage.",
            )
        version = await _extension_version(session) or (0, 5)
        await session.find_extension()
        layout = layout_of(self._schema, row[0], generation, types, version)
        self._layouts[table.id, generation.number] = (generation, layout)
        return layout

    # ---------------------------------------------------------------- rows

    async def apply(self, table: VectorTable, generation: Generation, records: Sequence[VectorRecord]) -> Applied:
        if not records:
            return Applied()
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)
            try:
                return await apply_records(session, layout, table.id, generation.number, records)
            except (psycopg.Error, StoreRejected):
                self._layouts.pop((table.id, generation.number), None)  # it may have been dropped or changed
                session.staging.clear()
                raise

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]:
        if not keys:
            return {}
        wanted = {key_hex(k): k for k in keys}
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)
            cur = await session.conn.execute(
                f"SELECT key_id, epoch, lsn::text, ordinal, live, hash FROM {layout.table} "
                "WHERE key_id = ANY (%s::uuid[]) ORDER BY key_id, chunk".encode(),
                ("{" + ",".join(wanted) + "}",),  # thousands of them: one text is dumped faster than a list
            )
            found: dict[bytes, StoredVersion] = {}
            async for identity, epoch, lsn, ordinal, live, content_hash in cur:
                key = wanted[identity.hex]
                before = found[key].hashes if key in found else ()
                if key in found:
                    epoch, lsn_number, ordinal = found[key].position
                else:
                    lsn_number = parse_lsn(lsn)
                hashes = (*before, content_hash) if live else ()
                found[key] = StoredVersion(Position(epoch, lsn_number, ordinal), live, hashes)
        return found

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        if not hashes:
            return {}
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)
            cur = await session.conn.execute(
                # one vector per hash: a text may stand in a million rows
                f"SELECT h.hash, v.embedding::text FROM unnest(%s::text[]) h(hash) CROSS JOIN LATERAL "
                f"(SELECT embedding FROM {layout.table} t WHERE t.hash = h.hash AND t.embedding IS NOT NULL LIMIT 1) v"
                "".encode(),
                (list(set(hashes)),),
            )
            return parse_vectors(await cur.fetchall())

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
    ) -> list[Hit]:
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)
            try:
                return await search(
                    session, layout, vector, limit=limit, where=where, min_score=min_score, after=after, vectors=vectors
                )
            except psycopg.Error:
                self._layouts.pop((table.id, generation.number), None)  # it may have been dropped or changed
                raise

    async def count(self, table: VectorTable, generation: Generation) -> int:
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)
            cur = await session.conn.execute(f"SELECT count(*) FROM {layout.table} WHERE live AND chunk = 0".encode())
            row = await cur.fetchone()
            return int(row[0]) if row is not None else 0

    async def build_indexes(self, table: VectorTable, generation: Generation) -> None:
        async with self._slow.session() as session:
            layout = await self._layout(session, table, generation)
            await build_indexes(session, layout, generation.index)

    async def purge(self, table: VectorTable, generation: Generation, horizon: Position, keep: Set[bytes]) -> int:
        async with self._sessions.session() as session:
            layout = await self._layout(session, table, generation)
            return await purge_tombstones(session, layout, table.id, generation.number, horizon, key_ids(list(keep)))

    async def compare(
        self,
        table: VectorTable,
        generation: Generation,
        rows: AsyncIterator[Sequence[tuple[bytes, str | None]]],
        *,
        only: Sequence[bytes] | None = None,
    ) -> Differences:
        async with self._slow.session() as session:
            layout = await self._layout(session, table, generation)
            found = await compare(session, layout, rows, only)
            if found.duplicate:  # chunks that no record of ours made: from now on every upsert looks for surplus ones
                await session.conn.execute(
                    f"UPDATE {layout.state} SET chunked = true "
                    "WHERE table_id = %s AND generation = %s AND NOT chunked".encode(),
                    (table.id, generation.number),
                )
            return found

    async def close(self) -> None:
        await self._sessions.close()
        await self._slow.close()


def _same_storage(a: Generation, b: Generation) -> bool:
    kept = a.keep_embedding_columns == b.keep_embedding_columns
    return kept and (a.columns, a.key, a.source, a.embedding_dimensions) == (
        b.columns, b.key, b.source, b.embedding_dimensions
    )  # fmt: skip


async def _extension_version(session: Session) -> tuple[int, int] | None:
    cur = await session.conn.execute(b"SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    row = await cur.fetchone()
    if row is None:
        return None
    parts = [int(p) for p in str(row[0]).split(".")[:2] if p.isdigit()]
    return (parts[0], parts[1] if len(parts) > 1 else 0)
