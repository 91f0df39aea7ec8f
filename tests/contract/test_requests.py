"""What API processes share of the requests they serve: on Postgres, and in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psycopg
import pytest

from tests.plugins.postgres import PostgresDatabase
from walvec.definitions.answers import KeptAnswer, RequestKey
from walvec.definitions.memory.answers import MemoryAnswers
from walvec.definitions.permits import MemoryPermits
from walvec.definitions.ports import Answers, Permits
from walvec.definitions.postgres import open_control

KEY = RequestKey("org_1", "", "first")
ANSWER = KeptAnswer(201, {"content-type": "application/json"}, '{"key":"sk_live_secret"}')
HOUR = 3600


class Several:
    """Two processes' views of the same."""

    def __init__(self, permits: list[Permits], answers: list[Answers], dsn: str | None) -> None:
        self.permits, self.answers, self.dsn = permits, answers, dsn

    async def age(self, seconds: float) -> None:
        """Everything that is kept was made so long before."""
        assert self.dsn is not None
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as session:
            await session.execute(
                "UPDATE walvec_control.kept_answers SET created_at = created_at - %s * interval '1 s',"
                " held_until = held_until - %s * interval '1 s'",
                [seconds, seconds],
            )


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class SeveralInMemory(Several):
    def __init__(self) -> None:
        self.clock = Clock()
        permits, answers = MemoryPermits(self.clock), MemoryAnswers(self.clock)
        super().__init__([permits, permits], [answers, answers], None)

    async def age(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture(params=["memory", "postgres"])
async def several(request: pytest.FixtureRequest) -> AsyncIterator[Several]:
    if request.param == "memory":
        yield SeveralInMemory()
        return
    postgres: PostgresDatabase = request.getfixturevalue("postgres")
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(2):
            control = await open_control(postgres.dsn, environment="prod", secret_key="k")
            stack.push_async_callback(control.close)
            opened.append(control)
        yield Several([c.permits for c in opened], [c.answers for c in opened], postgres.dsn)


async def test_leases_never_exceed_the_limit_together(several: Several) -> None:
    leases = await asyncio.gather(*(several.permits[n % 2].lease("org_1", 100, HOUR, 7) for n in range(40)))
    assert sum(v.granted for v in leases) == 100
    assert max(v.current for v in leases) == 100
    assert {v.previous for v in leases} == {0}
    assert all(0 <= v.elapsed <= HOUR for v in leases)
    assert (await several.permits[0].lease("org_2", 100, HOUR, 7)).granted == 7


async def test_the_window_before_weighs_on_the_current_one() -> None:
    clock = Clock()
    clock.now = 7200.0
    permits = MemoryPermits(clock)
    assert (await permits.lease("a", 100, HOUR, 1000)).granted == 100
    clock.now += HOUR
    assert (await permits.lease("a", 100, HOUR, 10)).granted == 0
    clock.now += HOUR / 2
    assert (await permits.lease("a", 100, HOUR, 1000)).granted == 50
    clock.now -= 2 * HOUR  # a clock that goes back opens no window again
    assert (await permits.lease("a", 100, HOUR, 1000)).granted == 0
    clock.now += 5 * HOUR
    assert (await permits.lease("a", 100, HOUR, 1000)).granted == 100


async def test_postgres_weighs_the_window_before(postgres: PostgresDatabase) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="k")
    try:
        assert (await control.permits.lease("a", 1000, HOUR, 1000)).granted == 1000
        postgres.execute("UPDATE walvec_control.permits SET bucket = bucket - 1")
        found = await control.permits.lease("a", 1000, HOUR, 5000)
        expected = 1000 * found.elapsed / HOUR
        assert found.previous == 1000
        assert expected - 2 <= found.granted <= expected + 1
        postgres.execute("UPDATE walvec_control.permits SET bucket = bucket - 2")
        assert (await control.permits.lease("a", 1000, HOUR, 5000)).granted == 1000
        postgres.execute("UPDATE walvec_control.permits SET bucket = bucket + 9")
        assert (await control.permits.lease("a", 1000, HOUR, 5000)).granted == 0
    finally:
        await control.close()


async def test_a_repeat_is_given_the_same_answer(several: Several) -> None:
    one, other = several.answers
    begun = await one.begin(KEY, "POST /v1/api-keys", b"d")
    assert begun.state == "new"
    assert (await other.begin(KEY, "POST /v1/api-keys", b"d")).state == "in_progress"
    assert (await other.begin(KEY, "POST /v1/api-keys", b"x")).state == "reused"
    await one.finish(KEY, begun.attempt, ANSWER)
    again = await other.begin(KEY, "POST /v1/api-keys", b"d")
    assert (again.state, again.answer) == ("done", ANSWER)
    assert (await other.begin(KEY, "POST /v1/api-keys", b"x")).state == "reused"
    for another in (RequestKey("org_2", "", "first"), RequestKey("org_1", "env_2", "first")):
        assert (await one.begin(another, "POST /v1/api-keys", b"x")).state == "new"
    if several.dsn is not None:
        async with await psycopg.AsyncConnection.connect(several.dsn) as session:
            row = await (await session.execute("SELECT k::text FROM walvec_control.kept_answers k")).fetchall()
        assert "secret" not in str(row)
        assert b"secret".hex() not in str(row)


async def test_one_of_many_at_once_is_served(several: Several) -> None:
    begun = await asyncio.gather(*(several.answers[n % 2].begin(KEY, "POST /", b"d") for n in range(12)))
    assert sorted(b.state for b in begun) == ["in_progress"] * 11 + ["new"]


async def test_an_attempt_that_died_lets_go(several: Several) -> None:
    one, other = several.answers
    died = await one.begin(KEY, "POST /", b"d")
    await several.age(29)
    assert (await other.begin(KEY, "POST /", b"d")).state == "in_progress"
    await one.prolong(KEY, died.attempt)
    await several.age(29)
    assert (await other.begin(KEY, "POST /", b"d")).state == "in_progress"
    await several.age(2)
    assert (await other.begin(KEY, "POST /", b"x")).state == "reused"
    taken = await other.begin(KEY, "POST /", b"d")
    assert taken.state == "new"
    await one.finish(KEY, died.attempt, ANSWER)  # it was only slow: what it did is not told any more
    await one.abandon(KEY, died.attempt)
    assert (await one.begin(KEY, "POST /", b"d")).state == "in_progress"
    await other.finish(KEY, taken.attempt, ANSWER)
    assert (await one.begin(KEY, "POST /", b"d")).answer == ANSWER


async def test_an_abandoned_key_is_free_and_an_answer_is_forgotten_after_a_day(several: Several) -> None:
    one, other = several.answers
    begun = await one.begin(KEY, "POST /", b"d")
    await one.abandon(KEY, begun.attempt)
    begun = await other.begin(KEY, "POST /", b"x")
    assert begun.state == "new"
    await other.finish(KEY, begun.attempt, ANSWER)
    await several.age(23 * HOUR)
    assert (await one.begin(KEY, "POST /", b"x")).state == "done"
    await several.age(2 * HOUR)
    assert (await one.begin(KEY, "POST /", b"other")).state == "new"
