"""Organizations, environments and API keys in the control database. Implements `ports.Accounts`.

Every change moves the feed: a key that is revoked opens nothing from then on, in whatever process it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from walvec.contracts.errors import Conflict, NotFound
from walvec.definitions.model import DEFAULT_ORGANIZATION, ApiKey, Environment, Organization
from walvec.definitions.pool import Connection, Pool
from walvec.definitions.tenancy import default_stays, locks
from walvec.definitions.values import instant


async def read_accounts(
    conn: Connection,
) -> tuple[Mapping[str, Environment], Mapping[str, Organization], Mapping[str, ApiKey]]:
    cursor = await conn.execute(
        "SELECT id, org_id, name, view_schema, created_at FROM walvec_control.environments ORDER BY created_at, id"
    )
    environments = [Environment(r[0], r[1], r[2], r[3], instant(r[4])) for r in await cursor.fetchall()]
    cursor = await conn.execute(
        "SELECT id, name, status, created_at FROM walvec_control.organizations ORDER BY created_at, id"
    )
    organizations = [Organization(r[0], r[1], r[2], instant(r[3])) for r in await cursor.fetchall()]
    cursor = await conn.execute(
        "SELECT id, org_id, name, digest, prefix, permission, created_by, created_at, revoked_at"
        " FROM walvec_control.api_keys ORDER BY created_at, id"
    )
    keys = [_key(r) for r in await cursor.fetchall()]
    return {e.id: e for e in environments}, {o.id: o for o in organizations}, {k.id: k for k in keys}


def _key(row: tuple[Any, ...]) -> ApiKey:
    revoked_at = None if row[8] is None else instant(row[8])
    return ApiKey(row[0], row[1], row[2], bytes(row[3]), row[4], row[5], row[6], instant(row[7]), revoked_at)


async def enter_environment(conn: Connection, environment: Environment) -> None:
    await conn.execute(
        "INSERT INTO walvec_control.environments (id, org_id, name, view_schema) VALUES (%s, %s, %s, %s)",
        [environment.id, environment.org_id, environment.name, environment.view_schema],
    )


async def _enter_key(conn: Connection, key: ApiKey) -> None:
    await conn.execute(
        "INSERT INTO walvec_control.api_keys (id, org_id, name, digest, prefix, permission, created_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [key.id, key.org_id, key.name, key.digest, key.prefix, key.permission, key.created_by],
    )
    if locks(key):
        await conn.execute("UPDATE walvec_control.installation SET keys_needed = true WHERE NOT keys_needed")


class ControlAccounts:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_organization(self, organization: Organization, environment: Environment, key: ApiKey) -> None:
        async with self._pool.change() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.organizations (id, name) VALUES (%s, %s)",
                [organization.id, organization.name],
            )
            await enter_environment(conn, environment)
            await _enter_key(conn, key)

    async def mark_deleting(self, org_id: str) -> None:
        async with self._pool.change() as conn:
            cursor = await conn.execute(
                "UPDATE walvec_control.organizations SET status = 'deleting' WHERE id = %s AND name <> %s",
                [org_id, DEFAULT_ORGANIZATION],
            )
            if cursor.rowcount == 0:
                raise await self._kept(conn, org_id)

    async def delete_organization(self, org_id: str) -> None:
        async with self._pool.change() as conn:
            await conn.execute(
                "DELETE FROM walvec_control.providers p USING walvec_control.environments e"
                " WHERE e.id = p.environment_id AND e.org_id = %s",
                [org_id],
            )
            cursor = await conn.execute(
                "DELETE FROM walvec_control.organizations WHERE id = %s AND name <> %s", [org_id, DEFAULT_ORGANIZATION]
            )
            if cursor.rowcount == 0:
                raise await self._kept(conn, org_id)

    async def _kept(self, conn: Connection, org_id: str) -> Conflict | NotFound:
        cursor = await conn.execute("SELECT 1 FROM walvec_control.organizations WHERE id = %s", [org_id])
        if await cursor.fetchone() is None:
            return NotFound(f"there is no organization {org_id!r}.")
        return default_stays()

    async def create_environment(self, environment: Environment) -> None:
        async with self._pool.change() as conn:
            await enter_environment(conn, environment)

    async def delete_environment(self, environment_id: str) -> None:
        async with self._pool.change() as conn:
            await conn.execute("DELETE FROM walvec_control.providers WHERE environment_id = %s", [environment_id])
            cursor = await conn.execute("DELETE FROM walvec_control.environments WHERE id = %s", [environment_id])
            if cursor.rowcount == 0:
                raise NotFound(f"there is no environment {environment_id!r}.")

    async def create_key(self, key: ApiKey) -> None:
        async with self._pool.change() as conn:
            await _enter_key(conn, key)

    async def revoke_key(self, key_id: str) -> None:
        async with self._pool.change() as conn:
            cursor = await conn.execute(
                "UPDATE walvec_control.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = %s", [key_id]
            )
            if cursor.rowcount == 0:
                raise NotFound(f"there is no API key {key_id!r}.")
