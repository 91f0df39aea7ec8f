"""The control database's schema: brought to this program's version at every start.

Migrations are plain SQL, `migrations/<number>_<name>.sql`, applied in order, each once, in one transaction, under an
advisory lock, so that several processes may start at once. A newer schema is refused, never touched.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import resources

from walvec.contracts.errors import ConfigError
from walvec.definitions.accounts import enter_environment
from walvec.definitions.model import DEFAULT_ORGANIZATION, Organization
from walvec.definitions.pool import HUNG_SECONDS, Connection, move, patience, translated
from walvec.definitions.secrets import Secrets
from walvec.definitions.tenancy import new_environment

_log = logging.getLogger(__name__)
_LOCK = 0x77616C766563  # "walvec"


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str


def migrations() -> list[Migration]:
    """What this program ships, in order."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda m: m.number)


async def prepare(conn: Connection, environment: str, secrets: Secrets) -> str:
    """Upgrades the schema and enters the default organization's environment of that name; its id. Raises ConfigError
    for a newer schema or another secret key."""
    with translated():
        async with conn.transaction():
            await patience(conn, HUNG_SECONDS)
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            await _upgrade(conn)
            await conn.execute(
                "UPDATE walvec_control.installation SET key_check = %s WHERE key_check IS NULL", [secrets.key_check()]
            )
            ((key_check,),) = await (await conn.execute("SELECT key_check FROM walvec_control.installation")).fetchall()
            secrets.check(key_check)
            return await _entered(conn, environment)


async def _entered(conn: Connection, name: str) -> str:
    ((org_id,),) = await (
        await conn.execute("SELECT id FROM walvec_control.organizations WHERE name = %s", [DEFAULT_ORGANIZATION])
    ).fetchall()
    own = "SELECT id FROM walvec_control.environments WHERE org_id = %s AND name = %s"
    row = await (await conn.execute(own, [org_id, name])).fetchone()
    if row is not None:
        return str(row[0])
    made = new_environment(Organization(org_id, DEFAULT_ORGANIZATION), name)
    await enter_environment(conn, made)
    await move(conn)
    return made.id


async def _upgrade(conn: Connection) -> None:
    exists = await (await conn.execute("SELECT to_regclass('walvec_control.migrations') IS NOT NULL")).fetchone()
    if not exists or not exists[0]:
        # not IF NOT EXISTS alone: that asks for the right to create even where nothing is to be created
        await conn.execute("CREATE SCHEMA IF NOT EXISTS walvec_control")
        await conn.execute(
            "CREATE TABLE walvec_control.migrations"
            " (number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    rows = await (await conn.execute("SELECT number FROM walvec_control.migrations")).fetchall()
    applied = {number for (number,) in rows}
    shipped = migrations()
    newest = shipped[-1].number
    if applied and max(applied) > newest:
        raise ConfigError(
            f"the control database has schema version {max(applied)}; this walvec knows versions up to {newest}.",
            "Start the newer walvec again, or point WALVEC_CONTROL_DATABASE__URL to another database.",
        )
    for migration in shipped:
        if migration.number in applied:
            continue
        await conn.execute(migration.text.encode())
        await conn.execute(
            "INSERT INTO walvec_control.migrations (number, name) VALUES (%s, %s)", [migration.number, migration.name]
        )
        _log.info("schema upgraded", extra={"action": "migrate", "number": migration.number, "name_": migration.name})
