"""A source table as the catalog has it: names, types, keys, replica identity.

Law: everything is read in one snapshot; nothing is changed. Next: `preflight` judges it, `rows` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from cdc.session import Session
from walvec.contracts.errors import DefinitionError
from walvec.contracts.sources import SourceTable, TableColumn
from walvec.contracts.values import codec_name

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "c": "a composite type"}


@dataclass(frozen=True, slots=True)
class TableDetail:
    """What preflight needs beyond SourceTable. `leaves`: partitions with data, as (quoted name, identity)."""

    table: SourceTable
    kind: str
    persistence: str
    owner: str
    virtual: frozenset[str] = frozenset()
    """Generated columns that are not stored."""
    leaves: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    index_of: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Name of a unique, immediate, NOT NULL index by its columns, the primary key's too."""


def split_name(text: str) -> list[tuple[str, bool]]:
    """`public."My Table"` -> [("public", False), ("My Table", True)]: the parts, and whether each was quoted.

    Raises DefinitionError.
    """
    parts: list[tuple[str, bool]] = []
    i, n = 0, len(text)
    while True:
        if i < n and text[i] == '"':
            out = []
            i += 1
            while True:
                end = text.find('"', i)
                if end < 0:
                    raise DefinitionError(f"source_table {text!r} lacks a closing quote.", 'Write "schema"."table".')
                out.append(text[i:end])
                i = end + 1
                if text[i : i + 1] != '"':
                    break
                out.append('"')
                i += 1
            parts.append(("".join(out), True))
        else:
            end = text.find(".", i)
            end = n if end < 0 else end
            parts.append((text[i:end], False))
            i = end
        if not parts[-1][0]:
            raise DefinitionError(f"source_table {text!r} has an empty part.", "Write schema.table.")
        if i >= n:
            return parts
        if text[i] != ".":
            raise DefinitionError(f"source_table {text!r} cannot be read.", 'Write schema.table or "schema"."table".')
        i += 1


async def resolve(session: Session, text: str) -> int:
    """The table's oid. A quoted identifier is exact; an unquoted one matches exactly first, then folded.

    Raises DefinitionError with a suggestion.
    """
    parts = split_name(text.strip())
    if len(parts) == 3:
        database = await _one(session, "SELECT current_database()")
        if parts[0][0] != database:
            raise DefinitionError(
                f"source_table {text!r} names database {parts[0][0]!r}, the connection's is {database!r}.",
                "Leave the database out, or use a connection to it.",
            )
        parts = parts[1:]
    if len(parts) > 2:
        raise DefinitionError(f"source_table {text!r} has too many parts.", "Write schema.table.")
    table, schema = parts[-1], parts[0] if len(parts) == 2 else None
    for exact_schema, exact_table in ((True, True), (True, False), (False, True), (False, False)):
        if (not exact_table and table[1]) or (not exact_schema and (schema is None or schema[1])):
            continue
        name = table[0] if exact_table else _fold(table[0])
        if schema is None:
            found = await _one(
                session,
                "SELECT c.oid::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE c.relname = %s AND n.nspname = ANY(current_schemas(false)) AND c.relkind = ANY('{r,p,v,m,f}')"
                " ORDER BY array_position(current_schemas(false), n.nspname) LIMIT 1",
                (name,),
            )
        else:
            found = await _one(
                session,
                "SELECT c.oid::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE c.relname = %s AND n.nspname = %s AND c.relkind = ANY('{r,p,v,m,f}')",
                (name, schema[0] if exact_schema else _fold(schema[0])),
            )
        if found is not None:
            return int(found)
    raise DefinitionError(f"source table {text!r} does not exist.", await _suggest(session, table[0]))


def _fold(name: str) -> str:
    """As the server folds an unquoted identifier in a UTF-8 database: ASCII letters only."""
    return "".join(c.lower() if c.isascii() else c for c in name)


async def _suggest(session: Session, name: str) -> str:
    rows = await _all(
        session,
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' LIMIT 5000",
    )
    near = get_close_matches(name.lower(), [r[1].lower() for r in rows], n=1)
    for schema, table in rows:
        if near and table.lower() == near[0]:
            return f"Did you mean {_dotted(schema, table)}?"
    return "Create the table, or name another as schema.table."


def _dotted(schema: str, table: str) -> str:
    return ".".join(
        p if p.isidentifier() and p == p.lower() else '"' + p.replace('"', '""') + '"' for p in (schema, table)
    )


async def inspect(session: Session, source_table: str) -> SourceTable:
    """Resolves a name and reads the table. Raises DefinitionError for what cannot be followed in the WAL."""
    detail = await read_table(session, await resolve(session, source_table))
    refused = unusable(detail)
    if refused:
        raise DefinitionError(refused[0], refused[1])
    return detail.table


async def oid_of(session: Session, schema: str, name: str) -> int | None:
    """Exact names -> oid, None when there is no such table."""
    found = await _one(
        session,
        "SELECT c.oid::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        (schema, name),
    )
    return None if found is None else int(found)


_SYSTEM = frozenset({"pg_catalog", "information_schema", "pg_toast"})


def unusable(detail: TableDetail) -> tuple[str, str] | None:
    """Why this relation's changes can never be read from the WAL, and the cure; None for a table that is fine."""
    name = _dotted(detail.table.schema, detail.table.name)
    if detail.table.schema in _SYSTEM:
        return f"{name} is a table of the system: its changes are not published.", "Name a table of your own."
    if detail.kind not in "rp":
        return (
            f"{name} is {_KINDS.get(detail.kind, 'not a table')}: its changes are not in the write-ahead log.",
            "Name the table that holds the rows.",
        )
    if detail.persistence == "u":
        return f"{name} is UNLOGGED: its changes are not in the write-ahead log.", f"ALTER TABLE {name} SET LOGGED;"
    if detail.persistence == "t":
        return f"{name} is a temporary table.", "Name a permanent table."
    return None


_COLUMNS = """
WITH RECURSIVE chain AS (
    SELECT a.attnum, 0 AS depth, a.atttypid AS oid, false AS is_array
      FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT c.attnum, c.depth + 1, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE e.oid END,
           c.is_array OR t.typtype <> 'd'
      FROM chain c JOIN pg_type t ON t.oid = c.oid
      LEFT JOIN pg_type e ON e.typarray = t.oid AND t.typtype <> 'd'
     WHERE t.typtype = 'd' OR e.oid IS NOT NULL
), base AS (
    SELECT DISTINCT ON (attnum) attnum, oid, is_array FROM chain ORDER BY attnum, depth DESC
), outside AS (
    SELECT c.attnum, bool_or(CASE WHEN n.nspname = 'pg_catalog' THEN t.typname LIKE 'reg%%'
             WHEN t.oid = e.typarray THEN false
             ELSE NOT EXISTS (SELECT FROM pg_depend d
                               WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
           END) AS user_defined
      FROM chain c JOIN pg_type t ON t.oid = c.oid JOIN pg_namespace n ON n.oid = t.typnamespace
      LEFT JOIN pg_type e ON e.typarray = t.oid GROUP BY c.attnum
)
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid::bigint, format_type(b.oid, NULL), b.is_array,
       NOT a.attnotnull, o.user_defined, a.attgenerated, t.typdelim, a.attnum
  FROM pg_attribute a JOIN base b USING (attnum) JOIN outside o USING (attnum) JOIN pg_type t ON t.oid = b.oid
 WHERE a.attrelid = %(oid)s ORDER BY a.attnum
"""

_INDEXES = """
SELECT c.relname, i.indisprimary, i.indimmediate, i.indisreplident, i.indisvalid AND i.indpred IS NULL,
       ARRAY(SELECT k.attnum::int FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
              WHERE k.n <= i.indnkeyatts ORDER BY k.n)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = %(oid)s AND i.indisunique ORDER BY c.relname
"""

_LEAVES = """
SELECT n.nspname, c.relname, c.relreplident,
       ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a
               ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey::int2[])
              WHERE i.indrelid = c.oid AND i.indimmediate
                AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
       greatest(c.reltuples, 0)
  FROM pg_partition_tree(%(oid)s) p JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.isleaf
"""


_RELATIVES = """
SELECT n.nspname::text, c.relname::text
  FROM {}(%(oid)s) WITH ORDINALITY AS p JOIN pg_class c ON c.oid = p.relid
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid <> %(oid)s ORDER BY p.ordinality
"""


async def read_table(session: Session, oid: int) -> TableDetail:
    """The catalog's rows of one table, in one snapshot. Raises TableChanged when it went away meanwhile."""
    async with session.transaction():
        # an empty search_path makes format_type() qualify every type that is not in pg_catalog
        await session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await session.execute("SET LOCAL search_path = ''")
        head = await _all(
            session,
            "SELECT n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, c.reltuples,"
            " pg_get_userbyid(c.relowner), pg_relation_size(c.oid),"
            " has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s",
            (oid,),
        )
        if not head:
            raise DefinitionError("the source table was dropped meanwhile.", "Create it again.")
        columns = await _all(session, _COLUMNS, {"oid": oid})
        indexes = await _all(session, _INDEXES, {"oid": oid})
        leaves = await _all(session, _LEAVES, {"oid": oid}) if head[0][2] == "p" else []
        above = await _all(session, _RELATIVES.format("pg_partition_ancestors"), {"oid": oid})
        below = await _all(session, _RELATIVES.format("pg_partition_tree"), {"oid": oid}) if head[0][2] == "p" else []
    schema, name, kind, persistence, identity, tuples, owner, size, readable = head[0]
    names = {row[9]: row[0] for row in columns}
    nullable = {row[0] for row in columns if row[5]}
    key: tuple[str, ...] = ()
    immediate_key = False
    unique: dict[str, tuple[str, ...]] = {}
    index_of: dict[tuple[str, ...], str] = {}
    identity_columns: tuple[str, ...] = ()
    for index, primary, immediate, replident, usable, numbers in indexes:
        if 0 in numbers or not usable:
            continue  # an expression, a partial or a broken index names no row
        found = tuple(names[n] for n in numbers)
        if primary:
            key, immediate_key = found, immediate
        elif immediate and not nullable.intersection(found):
            unique[index] = found
        if immediate and not nullable.intersection(found):
            index_of.setdefault(found, index)
        if identity == "i" and replident:
            identity_columns = found
    if identity == "d" and immediate_key:
        identity_columns = key  # a deferrable primary key is no replica identity
    elif identity == "f":
        identity_columns = tuple(row[0] for row in columns)
    estimate = sum(int(row[4]) for row in leaves) if kind == "p" else int(tuples)
    if estimate < 0:
        estimate = int(size) // 100  # never analysed: a guess from the file's size
    table = SourceTable(
        schema=schema,
        name=name,
        oid=oid,
        columns=tuple(_column(row) for row in columns),
        key=key,
        unique_keys=unique,
        identity=identity,
        identity_columns=identity_columns,
        partitioned=kind == "p",
        estimated_rows=estimate,
        above=tuple((row[0], row[1]) for row in above),
        below=tuple((row[0], row[1]) for row in below),
        readable=readable,
    )
    return TableDetail(
        table=table,
        kind=kind,
        persistence=persistence,
        owner=owner,
        virtual=frozenset(row[0] for row in columns if row[7] == "v"),
        leaves=tuple((_dotted(row[0], row[1]), row[2], tuple(row[3])) for row in leaves),
        index_of=index_of,
    )


def _column(row: Sequence[Any]) -> TableColumn:
    name, type_, oid, base, is_array, nullable, user_defined, generated, delimiter, _ = row
    codec = "text" if is_array and delimiter != "," else codec_name(base, array=is_array)
    return TableColumn(
        name=name,
        type=type_,
        type_oid=oid,
        base_type=base,
        codec=codec,
        nullable=nullable,
        user_defined=user_defined,
        generated=generated != "",
    )


async def _all(session: Session, query: str, arguments: Any = None) -> list[tuple[Any, ...]]:
    cursor = await session.execute(query.encode(), arguments, prepare=False)
    return list(await cursor.fetchall())


async def _one(session: Session, query: str, arguments: Any = None) -> Any:
    rows = await _all(session, query, arguments)
    return rows[0][0] if rows else None


_PARTITIONS = """
SELECT n.nspname::text, c.relname::text
  FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace, pg_partition_tree(r.oid) p
  JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE s.nspname = %(schema)s AND r.relname = %(name)s
"""


async def leaves_and_enums(session: Session, schema: str, name: str) -> tuple[set[tuple[str, str]], set[int]]:
    """Partitions of a table, and the oids of the database's enum types."""
    leaves = await _all(session, _PARTITIONS, {"schema": schema, "name": name})
    enums = await _all(session, "SELECT oid::bigint FROM pg_type WHERE typtype = 'e'")
    return {(row[0], row[1]) for row in leaves}, {row[0] for row in enums}


fetch_all = _all
fetch_one = _one
