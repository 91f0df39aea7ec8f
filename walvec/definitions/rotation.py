"""Another secret key: every stored secret is encrypted anew, in one transaction, while processes run.

They encrypt in transactions that see which key is in force (`in_force`) and wait for a rotation that is under way; so
nothing is ever stored under a key that is not any more.
"""

from __future__ import annotations

from collections.abc import Callable

from walvec.definitions.pool import HUNG_SECONDS, Connection, connect, move, patience, translated
from walvec.definitions.secrets import Secrets, kept_answer


async def in_force(conn: Connection, secrets: Secrets) -> None:
    """From here to the end of the transaction the key that encrypts stays the one in force. Raises ConfigError when
    this process does not know it."""
    cursor = await conn.execute("SELECT key_check FROM walvec_control.installation FOR SHARE")
    ((key_check,),) = await cursor.fetchall()
    secrets.check(bytes(key_check))


async def rotate(dsn: str, old: Secrets, new: Secrets) -> int:
    """How many values were encrypted anew; durable on return. `old` opens what is stored, `new` encrypts. Raises
    ConfigError when `old` does not open everything: then nothing is changed."""
    changed = 0
    async with await connect(dsn) as conn:
        with translated():
            async with conn.transaction():
                await patience(conn, HUNG_SECONDS)
                # before the installation, as those lock who take a removal back
                await conn.execute("SELECT 1 FROM walvec_control.removals ORDER BY sequence FOR UPDATE")
                await move(conn)  # every process reads the definitions again, and finds the new key
                cursor = await conn.execute("SELECT key_check FROM walvec_control.installation FOR UPDATE")
                ((key_check,),) = await cursor.fetchall()
                old.check(bytes(key_check))
                for relation, column, keys, where in _SEALED:
                    changed += await _again(conn, relation, column, keys, where, old, new)
                await conn.execute("UPDATE walvec_control.installation SET key_check = %s", [new.key_check()])
    return changed


Where = Callable[..., str]
_SEALED: tuple[tuple[str, str, tuple[str, ...], Where], ...] = (
    ("connections", "credentials", ("id",), lambda own: f"connection/{own}"),
    ("providers", "api_key", ("id",), lambda own: f"provider/{own}"),
    ("removals", "credentials", ("id", "connection_id"), lambda _, connection: f"connection/{connection}"),
    ("kept_answers", "answer", ("org_id", "environment", "key"), lambda *key: kept_answer(*key)),
)
"""Every column that holds secrets: relation, column, what names a row, and the place that its value is bound to."""


async def _again(
    conn: Connection, relation: str, column: str, keys: tuple[str, ...], where: Where, old: Secrets, new: Secrets
) -> int:
    named = ", ".join(keys)
    cursor = await conn.execute(
        f"SELECT {column}, {named} FROM walvec_control.{relation} WHERE {column} IS NOT NULL FOR UPDATE"
    )
    rows = await cursor.fetchall()
    same = " AND ".join(f"{k} = %s" for k in keys)
    for sealed, *key in rows:
        text = old.decrypt(bytes(sealed), where(*key))
        await conn.execute(
            f"UPDATE walvec_control.{relation} SET {column} = %s WHERE {same}", [new.encrypt(text, where(*key)), *key]
        )
    return len(rows)
