"""schemathesis asks every operation of the OpenAPI document, of a real `walvec up`, and finds nothing.

What it sends and what it expects: schemathesis.toml beside this file. `WALVEC_TEST_EXAMPLES=200` looks deeper.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.harness import SCHEMA, Walvec, document
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800 if "WALVEC_TEST_EXAMPLES" in os.environ else 300)]

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "sk_live_of_the_tests"


@pytest.fixture
def walvec(tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Walvec]:
    own = postgres.another()
    found = Walvec(tmp_path, control=own, store=own, env={"WALVEC_API__KEYS": KEY})
    postgres.execute(SCHEMA)
    postgres.execute("INSERT INTO items (id, title, stock) SELECT i, 'title ' || i, i FROM generate_series(1, 5) i")
    found.start(found.definitions(document(postgres.dsn)))
    yield found
    found.stop()


def test_nothing_is_found(walvec: Walvec, tmp_path: Path) -> None:
    examples = os.environ.get("WALVEC_TEST_EXAMPLES", "1")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{walvec.url}/openapi.json",
        "--max-examples", examples, "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "WALVEC_TEST_KEY": KEY, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-2000:]}\n{walvec.tail()}"
    operations = sum(len(methods) for methods in httpx.get(f"{walvec.url}/openapi.json").json()["paths"].values())
    assert re.search(rf"Tested: {operations}$", done.stdout, re.M), done.stdout[-5000:]
    answered = re.search(r"(\d+) generated", done.stdout)
    assert answered, done.stdout[-5000:]
    assert int(answered[1]) > 10 * operations
