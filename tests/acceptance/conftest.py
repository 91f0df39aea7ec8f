"""What most acceptance tests begin with; those that need another one have their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Walvec
from tests.plugins.postgres import PostgresDatabase


@pytest.fixture
def walvec(tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Walvec]:
    """Not started. Control database and store are one of their own."""
    own = postgres.another()
    found = Walvec(tmp_path, control=own, store=own)
    yield found
    found.stop()
