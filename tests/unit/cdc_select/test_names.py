import pytest

from cdc.backfill import MAX_CHUNK_BYTES, ChunkSize, Cursor
from cdc.catalog import split_name
from cdc.rereads import parse_key
from cdc.session import connect_error, query_error
from walvec.contracts.errors import (
    DefinitionError,
    SourceRejected,
    SourceUnavailable,
    TableChanged,
)
from walvec.contracts.position import Position


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("products", [("products", False)]),
        ("public.products", [("public", False), ("products", False)]),
        ('"My Shop"."a""b.c"', [("My Shop", True), ('a"b.c', True)]),
        ('public."Größe"', [("public", False), ("Größe", True)]),
        ("My Table", [("My Table", False)]),
    ],
)
def test_names(text: str, parts: list[tuple[str, bool]]) -> None:
    assert split_name(text) == parts


@pytest.mark.parametrize("text", ['"open', "a.", ".a", '"a"b', '""'])
def test_names_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DefinitionError):
        split_name(text)


def test_chunk_size_follows_bytes_and_time() -> None:
    size = ChunkSize(2000)
    size.learn(50, 50 * 81_000, 0.1)
    assert size.rows <= MAX_CHUNK_BYTES // 81_000 + 1
    for _ in range(10):
        size.learn(size.rows, size.rows * 100, 0.01)
    assert size.rows == 2000
    size.learn(2000, 2000, 8.0)
    assert size.rows == 500
    size.learn(0, 0, 0.0)
    assert size.rows == 500
    ChunkSize(1).learn(1, 10**9, 9.0)


def test_rule_restart_on_loss_progress_of_another_slot_does_not_count() -> None:
    stored = Cursor("1:0:log", ["5"], Position(0, 9, 0), 5, True).store()
    assert Cursor.load(stored, "1:0:log") == Cursor("1:0:log", ["5"], Position(0, 9, 0), 5, True)
    assert Cursor.load(stored, "2:0:log") == Cursor("2:0:log")
    assert Cursor.load({}, "1:0:log") == Cursor("1:0:log")


def test_keys_to_repair() -> None:
    assert parse_key('{"id":1}') == b'{"id":1}'
    assert parse_key("eyJpZCI6MX0=") == b'{"id":1}'
    with pytest.raises(DefinitionError):
        parse_key("id=1")


class Failure(Exception):
    def __init__(self, text: str, state: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = state


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('FATAL:  password authentication failed for user "u"', SourceRejected),
        ('FATAL:  database "nix" does not exist', SourceRejected),
        ('FATAL:  role "nix" does not exist', SourceRejected),
        ("connection refused", SourceUnavailable),
        ("FATAL:  the database system is starting up", SourceUnavailable),
        ("FATAL:  sorry, too many clients already", SourceUnavailable),
    ],
)
def test_failed_connections(text: str, kind: type[Exception]) -> None:
    found = connect_error(Failure(text))
    assert isinstance(found, kind)
    assert found.cure


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("42703", TableChanged), ("42P01", TableChanged), ("42501", SourceRejected), ("57P01", SourceUnavailable),
        ("08006", SourceUnavailable), (None, SourceUnavailable), ("22P02", DefinitionError), ("42883", SourceRejected),
    ],
)  # fmt: skip
def test_failed_statements(state: str | None, kind: type[Exception]) -> None:
    assert isinstance(query_error(Failure("no", state)), kind)
