"""Another secret key, while processes use what it protects."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.contract.test_control import LOCAL, SHOP
from walvec.contracts.errors import ConfigError
from walvec.definitions.answers import KeptAnswer, RequestKey
from walvec.definitions.postgres import ControlDatabase, open_control
from walvec.definitions.rotation import rotate
from walvec.definitions.secrets import Secrets

OLD, NEW = "the old key", "the new key"


async def opened(postgres: Any, secrets: str | Secrets) -> ControlDatabase:
    return await open_control(postgres.dsn, environment="prod", secret_key=secrets)


async def test_the_old_key_opens_nothing_afterwards_and_processes_go_on(postgres: Any) -> None:
    known = [OLD]
    control = await opened(postgres, Secrets(OLD, reread=lambda: known))
    await control.definitions.put_connection(SHOP)
    await control.definitions.put_provider(LOCAL)
    asked = RequestKey("org_1", "env_1", "k")
    begun = await control.answers.begin(asked, "POST /v1/api-keys", b"digest")
    await control.answers.finish(asked, begun.attempt, KeptAnswer(201, {}, "sk_live_hidden"))
    since = control.feed.current.version
    known[:] = [OLD, NEW]  # as the key file says while a rotation is under way
    assert await rotate(postgres.dsn, Secrets(OLD), Secrets(NEW)) == 3
    known[:] = [NEW]
    found = await control.definitions.snapshot()
    assert found.connections[SHOP.id].dsn == SHOP.dsn
    async with asyncio.timeout(5):
        felt = await control.feed.changed(since)
    assert felt.providers[LOCAL.id].api_key == LOCAL.api_key
    answer = (await control.answers.begin(asked, "POST /v1/api-keys", b"digest")).answer
    assert answer is not None
    assert answer.body == "sk_live_hidden"
    # what it writes from now on is under the new key
    await control.definitions.put_connection(replace(SHOP, id="conn_later", name="later"))
    await control.close()
    stored = postgres.execute(
        "SELECT id, credentials FROM walvec_control.connections UNION ALL"
        " SELECT id, api_key FROM walvec_control.providers"
    )
    assert len(stored) == 3
    for own, sealed in stored:
        where = f"{'connection' if own.startswith('conn') else 'provider'}/{own}"
        assert "hidden" in Secrets(NEW).decrypt(bytes(sealed), where)
        with pytest.raises(ConfigError):
            Secrets(OLD).decrypt(bytes(sealed), where)
    with pytest.raises(ConfigError, match="WALVEC_SECRET_KEY"):
        await opened(postgres, OLD)
    await (await opened(postgres, Secrets(NEW, OLD))).close()


async def test_processes_that_know_both_keys_work_beside_those_that_know_one(postgres: Any) -> None:
    one = await opened(postgres, OLD)
    both = await opened(postgres, Secrets(NEW, OLD))
    await both.definitions.put_connection(SHOP)  # nothing rotated yet: still under the old one
    assert (await one.definitions.snapshot()).connections[SHOP.id].dsn == SHOP.dsn
    await rotate(postgres.dsn, Secrets(NEW, OLD), Secrets(NEW))
    with pytest.raises(ConfigError):
        await one.definitions.put_provider(LOCAL)  # never stored under a key that is not in force
    await both.definitions.put_provider(LOCAL)
    assert postgres.execute("SELECT count(*) FROM walvec_control.providers") == [(1,)]
    await one.close()
    await both.close()


async def test_a_rotation_without_the_former_key_changes_nothing(postgres: Any) -> None:
    control = await opened(postgres, OLD)
    await control.definitions.put_connection(SHOP)
    before = postgres.execute("SELECT credentials FROM walvec_control.connections")
    with pytest.raises(ConfigError):
        await rotate(postgres.dsn, Secrets("a guess"), Secrets(NEW))
    assert postgres.execute("SELECT credentials FROM walvec_control.connections") == before
    assert (await control.definitions.snapshot()).connections[SHOP.id].dsn == SHOP.dsn
    await control.close()


async def test_writers_and_rotations_at_once_leave_every_value_readable(postgres: Any) -> None:
    known = ["k0"]
    control = await opened(postgres, Secrets("k0", reread=lambda: known))

    async def write(n: int) -> None:
        for i in range(6):
            await control.definitions.put_connection(replace(SHOP, id=f"conn_{n}_{i}", name=f"{n}.{i}"))

    async def turn() -> None:
        for n in range(1, 4):
            known.append(f"k{n}")
            await rotate(postgres.dsn, Secrets(*known[:-1]), Secrets(f"k{n}"))

    await asyncio.gather(*(write(n) for n in range(4)), turn())
    await control.close()
    last = await opened(postgres, "k3")
    assert len((await last.definitions.snapshot()).connections) == 24
    await last.close()
