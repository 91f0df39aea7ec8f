"""A generation takes the active one's place while roles are killed at every step on its way: who asks sees nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import psycopg
import pytest

from tests.acceptance.faults import PACED, Provider, filled, judge, provider
from tests.acceptance.harness import ROLES, TABLE, Walvec, Workload, document, running, wait_until
from tests.plugins.openai_server import vector_of
from tests.plugins.postgres import PostgresDatabase

GATES = """
CREATE FUNCTION public.ddl_gate() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_query() LIKE 'CREATE TABLE %' THEN
        PERFORM pg_advisory_xact_lock(1);
    ELSIF current_query() LIKE 'CREATE INDEX CONCURRENTLY %' THEN
        PERFORM pg_advisory_xact_lock(2);
    END IF;
END $$;
CREATE EVENT TRIGGER gate ON ddl_command_start WHEN TAG IN ('CREATE TABLE', 'CREATE INDEX')
    EXECUTE FUNCTION public.ddl_gate();
CREATE FUNCTION public.swap_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM json_array_elements(NEW.definition -> 'generations') g WHERE (g ->> 'swapping')::bool) THEN
        PERFORM pg_advisory_xact_lock(3);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gate BEFORE UPDATE ON walvec_control.vector_tables FOR EACH ROW EXECUTE FUNCTION public.swap_gate()
"""
"""In the database of store and control: a storage is made, indexes are built and a swap is begun only while the test
lets them. Who is killed there has done half of it. No transaction has an id before the first of them: the source is on
the same server, and what is read there would wait for it (rule start-horizon)."""

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]

PATH = "/v1/vector-tables/items"
STABLE, STABLE_STOCK = range(1000, 1040), 77
"""Rows that nobody changes: every answer has all of them."""
OWN, OWN_STOCK = 5000, 1000
STATIC = ("minilm-static-256", 256)
PAID = ("text-embedding-3-small", 64)
MOMENTS = ("building", "filled", "ready", "swapping")
VICTIMS: Sequence[Sequence[str]] = (("cdc", "embedder"), ("sink", "api"), ROLES)
"""They are killed at each moment, over as many swaps; with all roles the supervisor, too."""


class Swaps:
    """A running walvec whose table changes between two models. `outage`: set while the API may be away."""

    def __init__(self, walvec: Walvec, source: str, store: str, paid: Provider) -> None:
        self.walvec, self.source, self.store, self.paid = walvec, source, store, paid
        self.outage = threading.Event()

    def generations(self) -> Mapping[int, Mapping[str, Any]]:
        """As the control database has them; the API may be dead."""
        with psycopg.connect(self.store) as c:
            row = c.execute("SELECT definition -> 'generations' FROM walvec_control.vector_tables").fetchone()
        assert row is not None
        return {g["number"]: g for g in row[0]}

    def active(self) -> Mapping[str, Any]:
        return next(g for g in self.generations().values() if g["state"] == "active")

    def at(self, number: int, moment: str) -> bool:
        """Whether that is how far it is, and no further."""
        found = self.generations().get(number)
        if found is None:
            return False
        reached = {
            "building": self._rows_read(number),
            "filled": found["filled"],
            "ready": found["ready"],
            "swapping": found["swapping"],
        }
        after = MOMENTS[MOMENTS.index(moment) + 1 :]
        assert found["state"] == "building", found
        assert not any(reached[m] for m in after), (moment, found)
        return bool(reached[moment])

    def _rows_read(self, number: int) -> bool:
        with psycopg.connect(self.store) as c:
            row = c.execute(
                "SELECT max((progress ->> 'rows')::int) FROM walvec_control.tasks WHERE generation = %s", (number,)
            ).fetchone()
        return bool(row and row[0])

    # ------------------------------------------------------------------ what holds it at a moment

    @contextmanager
    def _held(self, statement: str) -> Iterator[None]:
        with psycopg.connect(self.store) as c:
            c.execute(statement.encode())
            yield
            c.rollback()

    def gate(self, number: int) -> AbstractContextManager[None]:
        return self._held(f"SELECT pg_advisory_xact_lock({number})")

    def view_is_read(self) -> AbstractContextManager[None]:
        """A long query: the view cannot be pointed anywhere else."""
        return self._held("SELECT FROM walvec.items LIMIT 1")

    # ------------------------------------------------------------------ a swap

    def put(self, model: tuple[str, int], provider_id: str) -> int | None:
        """None: the API was killed before it had answered."""
        body = {"embedding_provider_id": provider_id, "embedding_model": model[0], "embedding_dimensions": model[1]}
        try:
            answer = httpx.put(f"{self.walvec.url}{PATH}", json=body, timeout=120)
        except httpx.TransportError:
            assert self.outage.is_set()
            return None
        assert answer.status_code == 200, answer.text
        return int(answer.json()["building_generation"])

    def kill(self, victims: Sequence[str]) -> None:
        """Whoever follows them is not waited for."""
        for role in ROLES:
            wait_until(lambda role=role: self.walvec.roles()[role], what=f"{role} running")
        if "api" in victims:
            self.outage.set()
        if victims == ROLES:
            self.walvec.kill_all()
            self.walvec.start(ready=False)
        else:
            self.walvec.kill(*victims)

    def back(self) -> None:
        """The API can be asked again, and must answer from now on."""
        self.walvec.wait_ready()
        self.outage.clear()

    def swap(
        self, model: tuple[str, int], provider_id: str, victims: Sequence[Sequence[str]], held: Callable[[], None]
    ) -> int:
        """Kills some at each moment, in this order. `held`: called while the swap is held up."""
        self.back()
        number = max(self.generations()) + 1
        with (
            ThreadPoolExecutor() as beside,
            self.view_is_read(),
            ExitStack() as swappable,
            ExitStack() as indexable,
            ExitStack() as storable,
        ):
            for gate, until in ((1, storable), (2, indexable), (3, swappable)):
                until.enter_context(self.gate(gate))
            putting = beside.submit(self.put, model, provider_id)
            self._come(number, "building")
            self.kill(victims[0])
            storable.close()
            assert putting.result() in (number, None)
            self._come(number, "filled")
            self.kill(victims[1])
            indexable.close()
            self._come(number, "ready")
            self.kill(victims[2])
            swappable.close()
            self._come(number, "swapping")
            self.kill(victims[3])
            self.back()
            held()
            assert self.at(number, "swapping")
        wait_until(lambda: self.active()["number"] == number, timeout=60, what=f"generation {number} is active")
        return number

    def _come(self, number: int, moment: str) -> None:
        wait_until(lambda: self.at(number, moment), timeout=60, what=f"generation {number} is {moment}")


class Asker:
    """Asks again and again from a thread of its own until stopped; what it saw wrong ends the test."""

    def __init__(self, swaps: Swaps, ask: Callable[[Asker], None]) -> None:
        self.swaps, self._ask = swaps, ask
        self.answers = 0
        self.seen: set[Any] = set()
        self._failure: BaseException | None = None
        self._http = httpx.Client(base_url=swaps.walvec.url, timeout=120)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=120)
        assert not self._thread.is_alive()
        self._http.close()
        self.check()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def rests(self) -> bool:
        """A little; whether it is the end."""
        return self._stop.wait(0.03)

    def more_than(self, answers: int) -> bool:
        self.check()
        return self.answers > answers

    def _run(self) -> None:
        try:
            while not self.rests():
                self._ask(self)
        except BaseException as e:  # noqa: BLE001 - handed to the test by check()
            self._failure = e

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The answer; asked again when the API was killed, or is not there yet. Nothing else may fail."""
        while True:
            away = self.swaps.outage.is_set()
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError:
                assert away or self.swaps.outage.is_set(), "the API did not answer, though nobody had killed it"
                self._stop.wait(0.05)
                continue
            assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
            return answer.json()


def query(asker: Asker, stock: int) -> Any:
    body = {"query": "row", "filters": {"stock": stock}, "limit": 100, "include": ["vector"]}
    found = asker.request("POST", f"{PATH}/query", body)
    sizes = {len(hit["vector"]) for hit in found["results"]}
    assert sizes <= {dict([STATIC, PAID])[found["model"]]}, (found["model"], sizes)
    return found


def asks_the_api(asker: Asker) -> None:
    """Every answer is wholly one generation's, and has all that is always there."""
    found = query(asker, STABLE_STOCK)
    assert {int(hit["id"]) for hit in found["results"]} == set(STABLE), found
    assert found["generation"] >= max(asker.seen, default=0), "an older generation came back"
    asker.seen.add(found["generation"])
    asker.answers += 1


def reads_the_view(asker: Asker) -> None:
    with psycopg.connect(asker.swaps.store, autocommit=True) as c:
        while not asker.rests():
            rows = c.execute("SELECT id, vector_dims(embedding) FROM walvec.items", prepare=False).fetchall()
            assert set(STABLE) <= {r[0] for r in rows}
            (dimensions,) = {r[1] for r in rows}
            asker.seen.add(dimensions)
            asker.answers += 1


def reads_its_own_writes(asker: Asker) -> None:
    """A row is put in and the one before is taken out; what then says that it is as far, is."""
    n = asker.answers = asker.answers + 1
    with psycopg.connect(asker.swaps.source, autocommit=True) as c:
        with c.transaction():
            c.execute("INSERT INTO items (id, title, stock) VALUES (%s, %s, %s)", (OWN + n, f"own {n}", OWN_STOCK + n))
            c.execute("DELETE FROM items WHERE id = %s", (OWN + n - 1,))
        row = c.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    lsn = str(row[0])
    at_once = query(asker, OWN_STOCK + n)
    if at_once["as_of_lsn"] is not None and number(at_once["as_of_lsn"]) >= number(lsn):
        asker.seen.add("promised")
        assert [hit["id"] for hit in at_once["results"]] == [str(OWN + n)], at_once
    if n % 2:
        waited = asker.request("POST", f"{PATH}/sync/drain", {"lsn": lsn, "timeout": 110})
    else:
        waited = asker.request("GET", f"{PATH}/sync/status?wait_for_lsn={lsn}&timeout=110")
        assert waited["lsn_reached"] is True, waited
    assert number(waited["as_of_lsn"]) >= number(lsn), waited
    found = query(asker, OWN_STOCK + n)
    assert [hit["id"] for hit in found["results"]] == [str(OWN + n)], (lsn, waited, found)
    assert query(asker, OWN_STOCK + n - 1)["results"] == [], (lsn, waited)
    asker.seen.add(found["generation"])


def number(lsn: str) -> int:
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


@pytest.fixture
def swaps(tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Swaps]:
    store = postgres.another()
    filled(postgres.dsn, 300)
    filled(postgres.dsn, len(STABLE), first=STABLE.start)
    postgres.execute(f"UPDATE items SET stock = {STABLE_STOCK} WHERE id >= {STABLE.start}")
    with provider(latency=0.0) as paid:
        walvec = Walvec(tmp_path, control=store, store=store, env=PACED)
        walvec.start(walvec.definitions(document(postgres.dsn, TABLE, providers=[paid.definition()])))
        walvec.drain()
        with psycopg.connect(store, autocommit=True) as c:
            c.execute(GATES)
        yield Swaps(walvec, postgres.dsn, store, paid)
        walvec.stop()


def test_a_swap_outlives_whoever_is_killed_on_its_way(swaps: Swaps) -> None:
    listed = httpx.get(f"{swaps.walvec.url}/v1/embedding-providers").json()["data"]
    providers = {p["name"]: p["id"] for p in listed}
    api, view, own = (Asker(swaps, ask) for ask in (asks_the_api, reads_the_view, reads_its_own_writes))
    active: list[int] = []

    def held() -> None:
        """What is asked in the middle of a swap."""
        answers = api.answers, view.answers
        assert httpx.post(f"{swaps.walvec.url}{PATH}/rebuild/abort").json()["error"]["code"] == "swap_in_progress"
        verified = swaps.walvec.ask(f"{PATH}/verify", {})
        assert not any(verified.values()), verified
        for asker, before in zip((api, view), answers, strict=True):
            wait_until(lambda a=asker, b=before: a.more_than(b + 2), what="answers in the middle of a swap")

    with running(Workload(swaps.source, seed=11, truncate=False, pause=0.02)), api, view, own:
        for turn in range(len(VICTIMS)):
            victims = [VICTIMS[(turn + i) % len(VICTIMS)] for i in range(len(MOMENTS))]
            name, model = (("paid", PAID), ("local", STATIC))[turn % 2]
            active.append(swaps.swap(model, providers[name], victims, held))
            wait_until(
                lambda: api.more_than(0) and own.more_than(0) and active[-1] in api.seen & own.seen,
                timeout=60,
                what="answers of the new generation",
            )
    assert api.seen >= set(active)
    assert view.seen == {STATIC[1], PAID[1]}
    judge(swaps.walvec, swaps.source, swaps.store)
    assert swaps.active()["embedding_model"] == PAID[0]
    with psycopg.connect(swaps.store) as c:
        rows = c.execute("SELECT embedded_text, embedding::text FROM walvec.items").fetchall()
    assert len(rows) >= len(STABLE)
    for text, vector in rows:
        expected = vector_of(text, PAID[1])
        np.testing.assert_allclose(orjson.loads(vector), expected, rtol=1e-5, atol=1e-6, err_msg=text[:80])
