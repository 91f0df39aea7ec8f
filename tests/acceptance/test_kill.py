"""Whatever is killed, at whatever moment, under load and with a backfill running: nothing is lost, stale or left."""

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.faults import PACED, filled, judge, provider, rows_read
from tests.acceptance.harness import ROLES, TABLE, Walvec, Workload, after, document, running, wait_until
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

ROWS = 8000
ITEMS, IN_FLIGHT = 50, 4


@pytest.fixture
def store(postgres: PostgresDatabase) -> str:
    return postgres.another()


@pytest.fixture
def walvec(tmp_path: Path, store: str) -> Iterator[Walvec]:
    found = Walvec(tmp_path, control=store, store=store, env=PACED)
    yield found
    found.stop()


@pytest.mark.parametrize("seed", [3])
def test_kills_at_random_moments(walvec: Walvec, postgres: PostgresDatabase, store: str, seed: int) -> None:
    """Two tables of one source, one embedded here and one by a slow provider that counts what it is paid for."""
    dice = random.Random(seed)
    filled(postgres.dsn, ROWS)
    with provider(latency=1.0) as paid:  # slow: the backfill is still open when the last one is killed
        definition = document(
            postgres.dsn, TABLE, paid.table(), providers=[paid.definition(max_items=ITEMS, max_in_flight=IN_FLIGHT)]
        )
        definitions = walvec.definitions(definition)
        walvec.start(definitions)
        with running(Workload(postgres.dsn, seed=seed, truncate=False, pause=0.01)) as workload:
            in_the_middle = 0
            victims = [*ROLES, *ROLES, *ROLES]
            dice.shuffle(victims)
            for role in victims:
                after(workload, dice.randrange(5, 120))
                wait_until(lambda role=role: walvec.roles()[role], what=f"{role} running")
                walvec.kill(role)
            in_the_middle += rows_read(walvec, "paid") is not None
            # all at once, the supervisor too
            walvec.kill_all()
            after(workload, 20)
            walvec.start(definitions)
            in_the_middle += rows_read(walvec, "paid") is not None
            # the supervisor alone: the roles end by themselves, and nothing blocks the next start
            after(workload, dice.randrange(20, 100))
            orphans = walvec.kill_supervisor()
            walvec.start(definitions)
            _, alive = psutil.wait_procs(orphans, timeout=5)
            assert alive == []
            in_the_middle += rows_read(walvec, "paid") is not None
            # SIGTERM, with work in hand everywhere
            after(workload, dice.randrange(20, 100))
            assert walvec.stop() == 0
            paid.control(latency=0.02)
            after(workload, 20)
            walvec.start(definitions)
            after(workload, 50)
        assert in_the_middle == 3, "the backfill was over too early to prove anything"
        judge(walvec, postgres.dsn, store, ("items", "paid"))
        stats = paid.stats()
        kills = victims.count("embedder") + 2  # and each time that all died
        assert stats["texts"] - stats["distinct"] < kills * ITEMS * IN_FLIGHT, stats
    assert walvec.stop() == 0
