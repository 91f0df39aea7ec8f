"""A control database of the version before organizations, with what users have in it."""

import json
from typing import Any

import psycopg
import pytest

from tests.contract.test_control import GENERATION, LOCAL, PRODUCTS, SHOP
from walvec.contracts.errors import ConfigError
from walvec.definitions.postgres import open_control
from walvec.definitions.rotation import rotate
from walvec.definitions.rows import table_json
from walvec.definitions.schema import migrations
from walvec.definitions.secrets import Secrets

KEY = "a secret key"


@pytest.fixture
def former(postgres: Any) -> Any:
    """Schema version 5: two environments with a vector table of the same name each, and all that hangs on them."""
    secrets = Secrets(KEY)
    with psycopg.connect(postgres.dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA walvec_control")
        conn.execute(
            "CREATE TABLE walvec_control.migrations"
            " (number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for migration in migrations()[:5]:
            conn.execute(migration.text.encode())
            conn.execute(
                "INSERT INTO walvec_control.migrations (number, name) VALUES (%s, %s)",
                [migration.number, migration.name],
            )
        for n, (name, version) in enumerate((("prod", 41), ("test", 17))):
            connection, provider, table = f"conn_{n}", f"emb_{n}", f"vt_{n}"
            stored = table_json(PRODUCTS) | {
                "id": table,
                "connection_id": connection,
                "embedding_provider_id": provider,
                "created_at": "2026-01-01T00:00:00.000000Z",
            }
            for later in ("storage", "keep_previous", "last_generation"):
                stored.pop(later, None)
            conn.execute(
                "INSERT INTO walvec_control.environments (environment, version, key_check) VALUES (%s, %s, %s)",
                [name, version, secrets.key_check()],
            )
            conn.execute(
                "INSERT INTO walvec_control.connections (environment, id, name, provider, mode, credentials,"
                " on_slot_loss, status)"
                " VALUES (%s, %s, 'shop', 'postgresql', 'managed', %s, 'rebackfill', 'connected')",
                [name, connection, secrets.encrypt(SHOP.dsn + name, f"connection/{connection}")],
            )
            conn.execute(
                "INSERT INTO walvec_control.providers (environment, id, name, provider, api_key, limits)"
                " VALUES (%s, %s, 'local', 'openai', %s, '{}')",
                [name, provider, secrets.encrypt("sk-hidden", f"provider/{provider}")],
            )
            conn.execute(
                "INSERT INTO walvec_control.vector_tables (environment, id, name, connection_id,"
                " embedding_provider_id, definition, dead_in_row) VALUES (%s, %s, 'products', %s, %s, %s, 3)",
                [name, table, connection, provider, json.dumps(stored)],
            )
            conn.execute(
                "INSERT INTO walvec_control.tasks (environment, id, task_type, target_id, generation, params, progress)"
                " VALUES (%s, %s, 'backfill', %s, 1, '{}', '{\"rows\": 7}')",
                [name, f"task_{n}", table],
            )
            conn.execute(
                "INSERT INTO walvec_control.dead_letters (environment, vector_table_id, generation, key_id, key, kind,"
                " reason, epoch, lsn, ordinal, attempts, payload)"
                " VALUES (%s, %s, 1, gen_random_uuid(), 'k', 'provider', 'no', 0, 5, 1, 2, '')",
                [name, table],
            )
            conn.execute(
                "INSERT INTO walvec_control.progress (environment, connection_id, epoch, lsn, system_identifier,"
                " timeline, log_identity, slot_created_lsn) VALUES (%s, %s, 2, %s, 's', 1, 'l', 0)",
                [name, connection, 100 + n],
            )
            conn.execute('INSERT INTO walvec_control.published VALUES (%s, %s, \'{"vt": "m"}\')', [name, connection])
            conn.execute("INSERT INTO walvec_control.topics VALUES (%s, %s, 'topic', 'identity')", [name, table])
            conn.execute("INSERT INTO walvec_control.bridges VALUES (%s, %s, 0, 4, 9)", [name, table])
            conn.execute("INSERT INTO walvec_control.bridge_snapshots VALUES (%s, %s, 0, 4, 50)", [name, table])
            conn.execute("INSERT INTO walvec_control.reports VALUES (%s, 'cdc', %s, '{}')", [name, connection])
    return postgres


async def test_what_was_stored_goes_on_in_environments_of_one_organization(former: Any) -> None:
    control = await open_control(former.dsn, environment="prod", secret_key=KEY)
    now = await control.definitions.snapshot()
    assert now.version > 41
    (organization,) = now.organizations.values()
    assert (organization.name, organization.status) == ("default", "active")
    schemas = {e.name: e.view_schema for e in now.environments.values()}
    assert schemas == {"prod": "walvec", "test": "walvec_test"}
    for n, name in enumerate(("prod", "test")):
        own = now.environment(organization.id, name)
        assert own is not None
        assert own.org_id == organization.id
        found = now.within(own.id)
        assert found.connections[f"conn_{n}"].dsn == SHOP.dsn + name
        assert found.providers[f"emb_{n}"].api_key == LOCAL.api_key
        table = found.vector_tables[f"vt_{n}"]
        assert (table.environment_id, table.view_schema, table.dead_in_row) == (own.id, schemas[name], 3)
        assert (table.active.columns, table.storage_name) == (GENERATION.columns, f"vt_{n}_products")
        assert (await control.tasks.get(f"task_{n}")).progress == {"rows": 7}
        assert [t.id for t in await control.tasks.recent(environment_id=own.id)] == [f"task_{n}"]
        assert await control.letters.count(table.id) == 1
        assert (await control.progress.get(f"conn_{n}")).lsn == 100 + n
        assert await control.progress.published(f"conn_{n}") == {"vt": "m"}
        assert await control.progress.topics([table.id]) == {"topic": "identity"}
        bridge = await control.progress.bridge(table.id)
        assert bridge is not None
        assert (bridge.starts, bridge.sequence, bridge.snapshot_lsns) == ({0: 4}, 9, (50,))
    await control.definitions.delete_vector_table("vt_1")
    assert await control.letters.count("vt_1") == 0
    assert await control.progress.bridge("vt_1") is None
    await control.close()


async def test_the_secret_key_is_still_the_one_of_before(former: Any) -> None:
    with pytest.raises(ConfigError, match="WALVEC_SECRET_KEY"):
        await open_control(former.dsn, environment="prod", secret_key="another")


async def test_environments_with_secret_keys_of_their_own_go_on_under_one(former: Any) -> None:
    """Each environment had a check of its own: a server that knows both keys opens all."""
    other = Secrets("its own key")
    with psycopg.connect(former.dsn, autocommit=True) as conn:
        conn.execute(
            "UPDATE walvec_control.environments SET key_check = %s WHERE environment = 'test'", [other.key_check()]
        )
        conn.execute(
            "UPDATE walvec_control.connections SET credentials = %s WHERE id = 'conn_1'",
            [other.encrypt(SHOP.dsn + "test", "connection/conn_1")],
        )
        conn.execute(
            "UPDATE walvec_control.providers SET api_key = %s WHERE id = 'emb_1'",
            [other.encrypt("sk-hidden", "provider/emb_1")],
        )
    with pytest.raises(ConfigError, match="WALVEC_SECRET_KEYS_PREVIOUS"):
        await open_control(former.dsn, environment="prod", secret_key=KEY)
    both = Secrets(KEY, "its own key")
    control = await open_control(former.dsn, environment="prod", secret_key=both)
    now = await control.definitions.snapshot()
    assert now.connections["conn_1"].dsn == SHOP.dsn + "test"
    assert now.providers["emb_1"].api_key == "sk-hidden"
    await control.close()
    assert await rotate(former.dsn, both, Secrets(KEY)) == 4
    control = await open_control(former.dsn, environment="prod", secret_key=KEY)
    assert (await control.definitions.snapshot()).connections["conn_1"].dsn == SHOP.dsn + "test"
    await control.close()
