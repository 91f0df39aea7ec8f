"""The doctor: what a connection and its tables need at the source; each failure with the statement that mends it.

Law: reads only. `server_checks` and `table_checks` judge facts (pure); `doctor` gathers them. Next: `source`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdc.catalog import TableDetail, fetch_all, fetch_one, oid_of, read_table, unusable
from cdc.debezium_values import key_refused
from cdc.platform import platform_checks
from cdc.session import Session
from walvec.contracts.sources import Check
from walvec.definitions.model import FIRST_VIEW_SCHEMA, Connection, VectorTable

MINIMUM_VERSION = 140000


@dataclass(frozen=True, slots=True)
class ServerFacts:
    version: int
    version_text: str
    wal_level: str
    in_recovery: bool
    max_slots: int
    used_slots: int
    max_senders: int
    used_senders: int
    user: str
    database: str
    may_replicate: bool
    rds: bool
    may_create: bool
    slot: tuple[str, str, str] | None
    """(plugin, wal_status, active pid or "") of our own slot."""
    publication: tuple[bool, bool, bool, bool, bool, str, bool] | None
    """(insert, update, delete, truncate, via root, owner, owned by us) of our own publication."""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One vector table at the source; `detail` None = no such table."""

    vector_table: VectorTable
    detail: TableDetail | None
    unreadable: tuple[str, ...]
    schema_usable: bool
    owned: bool
    row_security: bool
    published: tuple[str, ...] | None
    """Columns that the publication really publishes; None = not this table."""
    row_filter: str | None
    above: tuple[str, str] | None = None
    """A partitioned table that it is a partition of, and that our publication publishes as a whole."""


def quote(*names: str) -> str:
    return ".".join('"' + n.replace('"', '""') + '"' for n in names)


def server_checks(f: ServerFacts, connection: Connection) -> list[Check]:
    me = quote(f.user)
    effective = f.wal_level == "logical" or (f.version >= 190000 and f.wal_level == "replica")
    checks = [
        Check(
            "server_version", f.version >= MINIMUM_VERSION, f"PostgreSQL {f.version_text}", "Upgrade to 14 or later."
        ),
        Check(
            "wal_level",
            effective,
            f"wal_level = {f.wal_level}",
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server.",
        ),
        Check(
            "primary",
            not f.in_recovery,
            "the server is a standby" if f.in_recovery else "the server is a primary",
            "Connect to the primary.",
        ),
        Check(
            "replication_slots",
            f.slot is not None or f.used_slots < f.max_slots,
            f"{f.used_slots} of {f.max_slots} replication slots in use",
            f"ALTER SYSTEM SET max_replication_slots = {f.max_slots + 4}; then restart the server, or drop a slot that "
            "nobody reads: SELECT pg_drop_replication_slot('…');",
        ),
        Check(
            "wal_senders",
            (f.slot is not None and f.slot[2] != "") or f.used_senders < f.max_senders,
            f"{f.used_senders} of {f.max_senders} WAL senders in use",
            f"ALTER SYSTEM SET max_wal_senders = {f.max_senders + 4}; then restart the server.",
        ),
        Check(
            "replication_right",
            f.may_replicate,
            f"user {f.user} {'may' if f.may_replicate else 'may not'} start replication",
            f"GRANT rds_replication TO {me};" if f.rds else f"ALTER ROLE {me} REPLICATION;",
        ),
    ]
    if f.slot is None:
        checks.append(Check("slot", True, f"slot {connection.slot} will be created"))
    else:
        lost = f.slot[1] == "lost"
        checks.append(
            Check(
                "slot",
                not lost,
                f"slot {connection.slot}: {f.slot[0]}, WAL {f.slot[1]}, {'read' if f.slot[2] else 'not read now'}",
                f"SELECT pg_drop_replication_slot('{connection.slot}'); walvec makes it anew and reads the tables "
                "again. Raise max_slot_wal_keep_size so that it does not come again."
                if lost
                else "",
            )
        )
    name = quote(connection.publication)
    if f.publication is None:
        checks.append(
            Check(
                "create_publication",
                f.may_create,
                f"user {f.user} {'may' if f.may_create else 'may not'} create publication {connection.publication}",
                f"GRANT CREATE ON DATABASE {quote(f.database)} TO {me};",
            )
        )
    else:
        insert, update, delete, truncate, via_root, owner, owned = f.publication
        whole = insert and update and delete and truncate
        checks.append(
            Check(
                "publication_operations",
                whole and via_root,
                f"publication {connection.publication} publishes "
                + ", ".join(
                    n
                    for n, on in zip(
                        ("insert", "update", "delete", "truncate", "via root"),
                        (insert, update, delete, truncate, via_root),
                        strict=True,
                    )
                    if on
                ),
                f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate', "
                "publish_via_partition_root = true);",
            )
        )
        checks.append(
            Check(
                "publication_owner",
                owned,
                f"publication {connection.publication} belongs to {owner}",
                f"ALTER PUBLICATION {name} OWNER TO {me};",
            )
        )
    return [Check(c.name, c.ok, c.detail, "" if c.ok else c.cure) for c in checks]


def table_checks(f: TableFacts, *, version: int, publication: str, user: str) -> list[Check]:
    table = f.vector_table
    generations = table.live_generations
    name = quote(table.source_schema, table.source_table)
    label = f"{table.name}: "
    if f.detail is None:
        return [
            Check(
                "table",
                False,
                f"{label}source table {table.source_schema}.{table.source_table} does not exist",
                f"CREATE TABLE {name} (…); or delete the vector table.",
            )
        ]
    refused = unusable(f.detail)
    if refused:
        return [Check("table", False, label + refused[0], refused[1])]
    me, found = quote(user), f.detail.table
    columns = {c.name: c for c in found.columns}
    key = tuple(dict.fromkeys(k.name for g in generations for k in g.key))
    used = tuple(dict.fromkeys([c.name for g in generations for c in g.used_columns] + list(key)))
    checks = [Check("table", True, f"{label}{table.source_schema}.{table.source_table}")]
    missing = [c for c in used if c not in columns]
    checks.append(
        Check(
            "columns",
            not missing,
            label + (f"column {missing[0]} does not exist" if missing else "all columns exist"),
            f"ALTER TABLE {name} ADD COLUMN {quote(missing[0])} …; or change the definition." if missing else "",
        )
    )
    generated = [c for c in used if c in columns and columns[c].generated]
    bad = [c for c in generated if version < 180000 or c in f.detail.virtual]
    checks.append(
        Check(
            "generated_columns",
            not bad,
            label + (f"generated column {bad[0]} is not in the stream" if bad else "no generated column is in the way"),
            f"Leave {bad[0]} out of the definition, or "
            + ("make it STORED." if version >= 180000 else "upgrade the server to PostgreSQL 18 and make it STORED.")
            if bad
            else "",
        )
    )
    checks += _key_checks(f.detail, key, name, label)
    if not f.schema_usable:
        cure = f"GRANT USAGE ON SCHEMA {quote(table.source_schema)} TO {me};"
        checks.append(Check("select_right", False, f"{label}schema {table.source_schema} is closed to {user}", cure))
    else:
        cure = f"GRANT SELECT ON {name} TO {me};" if f.unreadable else ""
        detail = f"column {f.unreadable[0]} may not be read by {user}" if f.unreadable else f"{user} may read it"
        checks.append(Check("select_right", not f.unreadable, label + detail, cure))
    checks.append(
        Check(
            "row_security",
            not f.row_security,
            label + ("row-level security hides rows" if f.row_security else "no row is hidden"),
            f"ALTER ROLE {me} BYPASSRLS;" if f.row_security else "",
        )
    )
    checks += _publication_checks(f, used, columns.keys(), name, label, publication, me)
    return checks


def _key_checks(detail: TableDetail, key: tuple[str, ...], name: str, label: str) -> list[Check]:
    found = detail.table
    candidates = {found.key: "", **{v: k for k, v in found.unique_keys.items()}}
    if not key or not any(c and set(c) == set(key) for c in candidates):
        other = next((c for c in found.unique_keys.values()), None)
        if not key and other is None:
            cure = f"ALTER TABLE {name} ADD PRIMARY KEY (…);"
        elif not key and other is not None:
            cure = f"ALTER TABLE {name} ADD PRIMARY KEY (…); or set primary_key_column: [{', '.join(other)}]."
        else:
            listed = ", ".join(quote(k) for k in key)
            nullable = [c.name for c in found.columns if c.name in key and c.nullable]
            not_null = "".join(f"ALTER TABLE {name} ALTER COLUMN {quote(c)} SET NOT NULL; " for c in nullable)
            cure = f"{not_null}CREATE UNIQUE INDEX ON {name} ({listed});"
        what = f"({', '.join(key)}) names no row" if key else "there is no primary key"
        return [Check("primary_key", False, f"{label}{what}", cure)]
    checks = [Check("primary_key", True, f"{label}key ({', '.join(key)})")]
    index = next((i for c, i in detail.index_of.items() if set(c) == set(key)), None)
    if found.key and set(found.key) == set(key) and index is not None:
        cure = "REPLICA IDENTITY DEFAULT;"
    elif index is not None:
        cure = f"REPLICA IDENTITY USING INDEX {quote(index)};"
    else:
        cure = "REPLICA IDENTITY FULL;"  # a deferrable key is no replica identity
    names = {"d": "default", "n": "nothing", "f": "full", "i": "an index"}
    # under publish_via_partition_root the identity that is logged is the partition's own
    places = list(detail.leaves) if found.partitioned else [(name, found.identity, found.identity_columns)]
    wrong = [
        (place, identity)
        for place, identity, columns in places
        if identity != "f" and (identity == "n" or not set(key) <= set(columns))
    ]
    checks.append(
        Check(
            "replica_identity",
            not wrong,
            f"{label}replica identity of {wrong[0][0]} ({names[wrong[0][1]]}) does not cover the key"
            if wrong
            else f"{label}replica identity covers the key",
            " ".join(f"ALTER TABLE {place} {cure if place == name else _leaf_cure(cure)}" for place, _ in wrong[:20]),
        )
    )
    return checks


def _leaf_cure(cure: str) -> str:
    """An index of the root has another name at the partition."""
    return "REPLICA IDENTITY FULL;" if "INDEX" in cure else cure


def _publication_checks(
    f: TableFacts, used: Sequence[str], all_columns: Any, name: str, label: str, publication: str, me: str
) -> list[Check]:
    quoted = quote(publication)
    if f.above is not None:
        what = f"its rows are published as those of the partitioned table {'.'.join(f.above)}"
        return [Check("published", False, label + what, f"Use {quote(*f.above)} as source_table.")]
    if f.published is None:
        return [
            Check(
                "publish_right",
                f.owned,
                label
                + (
                    f"will be added to publication {publication}"
                    if f.owned
                    else f"only its owner can add it to publication {publication}"
                ),
                ""
                if f.owned
                else f"ALTER TABLE {name} OWNER TO {me}; or GRANT {quote(f.detail.owner if f.detail else '')} TO {me};",
            )
        ]
    hidden = [c for c in used if c in all_columns and c not in f.published]
    ok = not hidden and not f.row_filter
    if f.row_filter:
        what = f"publication {publication} leaves rows out"
    elif hidden:
        what = f"publication {publication} leaves column {hidden[0]} out"
    else:
        what = f"publication {publication} publishes it"
    cure = f"ALTER PUBLICATION {quoted} DROP TABLE {name}; ALTER PUBLICATION {quoted} ADD TABLE {name};"
    return [Check("published", ok, label + what, "" if ok else cure)]


async def server_facts(session: Session, connection: Connection) -> ServerFacts:
    row = (
        await fetch_all(
            session,
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
            " coalesce(current_setting('effective_wal_level', true), current_setting('wal_level')),"
            " pg_is_in_recovery(),"
            " current_setting('max_replication_slots')::int, (SELECT count(*)::int FROM pg_replication_slots),"
            " current_setting('max_wal_senders')::int, (SELECT count(*)::int FROM pg_stat_replication),"
            " current_user::text, current_database()::text,"
            " (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),"
            " EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication'),"
            " has_database_privilege(current_database(), 'CREATE')",
        )
    )[0]
    may_replicate, rds = bool(row[10]), bool(row[11])
    if rds and not may_replicate:
        may_replicate = await fetch_one(session, "SELECT pg_has_role(current_user, 'rds_replication', 'MEMBER')")
    slots = await fetch_all(
        session,
        "SELECT coalesce(plugin, ''), coalesce(wal_status, ''), coalesce(active_pid::text, '')"
        " FROM pg_replication_slots WHERE slot_name = %s",
        (connection.slot,),
    )
    publications = await fetch_all(
        session,
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, pg_get_userbyid(pubowner)::text,"
        " pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = %s",
        (connection.publication,),
    )
    slot: Any = slots[0] if slots else None
    publication: Any = publications[0] if publications else None
    facts: tuple[Any, ...] = (*row[:10], may_replicate, rds, row[12], slot, publication)
    return ServerFacts(*facts)


async def table_facts(session: Session, connection: Connection, table: VectorTable, version: int) -> TableFacts:
    oid = await oid_of(session, table.source_schema, table.source_table)
    if oid is None:
        return TableFacts(table, None, (), True, True, False, None, None)
    detail = await read_table(session, oid)
    wanted = {c.name for g in table.live_generations for c in (*g.used_columns, *g.key)}
    names = [c.name for c in detail.table.columns if c.name in wanted]
    rights = await fetch_all(
        session,
        "SELECT has_schema_privilege(c.relnamespace, 'USAGE'), pg_has_role(c.relowner, 'USAGE'),"
        " row_security_active(c.oid),"
        " ARRAY(SELECT n FROM unnest(%s::text[]) AS n WHERE NOT has_column_privilege(c.oid, n, 'SELECT'))"
        " FROM pg_class c WHERE c.oid = %s",
        (names, oid),
    )
    extra = "attnames::text[], rowfilter" if version >= 150000 else "NULL::text[], NULL::text"
    # the view shows leaves instead of the root when the publication is not via root: then `published` stays empty
    published = await fetch_all(
        session,
        f"SELECT {extra} FROM pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s",
        (connection.publication, table.source_schema, table.source_table),
    )
    above = await fetch_all(
        session,
        "SELECT n.nspname::text, c.relname::text FROM pg_partition_ancestors(%s) a JOIN pg_class c ON c.oid = a.relid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_publication_rel r ON r.prrelid = c.oid"
        " JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %s AND p.pubviaroot AND c.oid <> %s",
        (oid, connection.publication, oid),
    )
    usable, owned, hidden, unreadable = rights[0]
    columns = None if not published else tuple(names if published[0][0] is None else published[0][0])
    row_filter = published[0][1] if published else None
    place = (above[0][0], above[0][1]) if above else None
    return TableFacts(table, detail, tuple(unreadable), usable, owned, hidden, columns, row_filter, place)


async def doctor(session: Session, connection: Connection, tables: Sequence[VectorTable]) -> list[Check]:
    """All checks of a connection that can be reached."""
    facts = await server_facts(session, connection)
    checks = [Check("connection", True, f"connected to {facts.database} as {facts.user}")]
    checks += [c for c in server_checks(facts, connection) if _needed(c, tables)]
    if facts.version < MINIMUM_VERSION:
        return checks
    for schema in _schemas(connection, tables):
        checks += await platform_checks(session, schema)
    for table in tables:
        found = await table_facts(session, connection, table, facts.version)
        of_table = table_checks(
            found,
            version=facts.version,
            publication=connection.publication,
            user=facts.user,
        )
        if table.source is not None:
            of_table = [c for c in of_table if c.name not in _OF_PUBLICATION] + key_checks(table)
        checks += of_table
    return checks


def _schemas(connection: Connection, tables: Sequence[VectorTable]) -> list[str]:
    """Where walvec keeps vectors in this database."""
    found = sorted({t.view_schema for t in tables if t.mode == "platform"})
    return found or ([FIRST_VIEW_SCHEMA] if connection.mode == "platform" and not tables else [])


_OF_PUBLICATION = frozenset({"generated_columns", "publish_right", "published"})
_OF_READS = frozenset({"server_version", "primary"})


def _needed(check: Check, tables: Sequence[VectorTable]) -> bool:
    """A connection whose tables all stand behind a Debezium is only read: no slot, no right to replicate."""
    return not tables or any(t.source is None for t in tables) or check.name in _OF_READS


def key_checks(table: VectorTable) -> list[Check]:
    """Behind a Debezium: the key must be told exactly by its records."""
    bad = [k for g in table.live_generations for k in g.key if key_refused(k)]
    if not bad:
        return [Check("exact_key", True, f"{table.name}: records tell the key exactly")]
    what = f'key column "{bad[0].name}" of type {bad[0].type} is not told exactly by Debezium\'s records'
    cure = "Name another key (primary_key_column), give the type a scale, or let walvec read the table itself."
    return [Check("exact_key", False, f"{table.name}: {what}", cure)]
