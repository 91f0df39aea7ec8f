import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.copytext import parse_line
from walvec.contracts.errors import DecodeError

_OUT = {
    b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t", b"\v": b"\\v",
}  # fmt: skip


def server_line(cells: list[bytes | None]) -> bytes:
    """As CopyAttributeOutText writes it."""
    out = [b"\\N" if cell is None else b"".join(_OUT.get(bytes((b,)), bytes((b,))) for b in cell) for cell in cells]
    return b"\t".join(out) + b"\n"


@given(st.lists(st.none() | st.binary(max_size=40).map(lambda b: b.replace(b"\x00", b"")), min_size=1, max_size=5))
def test_every_line_of_the_server_comes_back(cells: list[bytes | None]) -> None:
    assert parse_line(server_line(cells), len(cells)) == tuple(cells)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\\N\n", (None,)),
        (b"\n", (b"",)),
        (b"N\t\\\\N\n", (b"N", b"\\N")),
        (b"a\\tb\\nc\\\\n\n", (b"a\tb\nc\\n",)),
        (b"\\101\\x41\\q\n", (b"AAq",)),
    ],
)
def test_escapes(line: bytes, expected: tuple[bytes | None, ...]) -> None:
    assert parse_line(line, len(expected)) == expected


def test_another_number_of_columns_is_an_error() -> None:
    with pytest.raises(DecodeError):
        parse_line(b"a\tb\n", 3)
