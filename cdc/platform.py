"""What a source database needs to keep vectors itself (mode platform): pgvector, and a place for walvec's schema.

Law: reads only. Next: `preflight` asks it beside the other checks.
"""

from __future__ import annotations

from cdc.catalog import fetch_all
from cdc.session import Session
from walvec.contracts.sources import Check

OLDEST = (0, 5)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def platform_checks(session: Session, schema: str) -> list[Check]:
    """`schema`: where storage and view are to be."""
    row = (
        await fetch_all(
            session,
            "SELECT current_user::text, current_database()::text,"
            " (SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
            " EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector'),"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
            "   OR has_database_privilege(current_database(), 'CREATE') AND EXISTS (SELECT"
            "     FROM pg_available_extension_versions WHERE name = 'vector' AND trusted),"
            " has_database_privilege(current_database(), 'CREATE'),"
            " (SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')"
            "   FROM pg_namespace WHERE nspname = %s)",
            (schema,),
        )
    )[0]
    user, database, version, available, may_extend, may_create, may_use_schema = row
    return [
        _extension(version, available=bool(available), may_extend=bool(may_extend)),
        _schema(schema, str(user), str(database), bool(may_create), may_use_schema),
    ]


def _extension(version: str | None, *, available: bool, may_extend: bool) -> Check:
    name = "vector_extension"
    if version is not None:
        if version_of(version) >= OLDEST:
            return Check(name, True, f"pgvector {version} is there")
        return Check(name, False, f"pgvector {version} is too old", "ALTER EXTENSION vector UPDATE;")
    if not available:
        cure = "Install pgvector 0.5 or later on the server, then run as a superuser: CREATE EXTENSION vector;"
        return Check(name, False, "the server does not have pgvector", cure)
    if may_extend:
        return Check(name, True, "pgvector will be created")
    return Check(name, False, "pgvector is not created", "Run as a superuser: CREATE EXTENSION vector;")


def version_of(text: str) -> tuple[int, int]:
    numbers = [int(p) for p in text.split(".")[:2] if p.isdigit()]
    return (numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else 0)


def _schema(schema: str, user: str, database: str, may_create: bool, may_use: bool | None) -> Check:
    name = "create_schema"
    if may_use is None:
        what = f"user {user} {'may' if may_create else 'may not'} create schema {schema}"
        cure = f"GRANT CREATE ON DATABASE {_quoted(database)} TO {_quoted(user)};"
        return Check(name, may_create, what, "" if may_create else cure)
    what = f"user {user} {'may' if may_use else 'may not'} create tables in schema {schema}"
    cure = f"GRANT USAGE, CREATE ON SCHEMA {_quoted(schema)} TO {_quoted(user)};"
    return Check(name, may_use, what, "" if may_use else cure)
