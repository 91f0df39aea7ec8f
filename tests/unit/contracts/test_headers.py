"""Headers are a function of the position, valid for every tracing tool, and never disagree with the value."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walvec.contracts.errors import DecodeError
from walvec.contracts.headers import COMMON, check_schema, headers_of, span, trace
from walvec.contracts.position import ZERO, Position
from walvec.contracts.wire import VERSION

POSITIONS = st.builds(Position, st.integers(0, 2**31 - 1), st.integers(1, 2**64 - 1), st.integers(0, 2**59))


def test_headers_of_a_change() -> None:
    assert headers_of(Position(1, 0x16B3748, 3)) == (
        ("content-type", b"application/json"),
        ("walvec-schema", b"%d" % VERSION),
        ("traceparent", b"00-000000000000000100000000016b3748-1000000000000003-01"),
    )


@given(POSITIONS)
def test_traceparents_are_valid_and_differ_by_position(position: Position) -> None:
    value = dict(headers_of(position))["traceparent"]
    found = re.fullmatch(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-01", value)
    assert found, value
    assert int(found[1], 16)
    assert int(found[2], 16)
    assert Position(int(found[1][:16], 16), int(found[1][16:], 16), int(found[2][1:], 16)) == position
    assert value == trace(position.epoch, position.lsn) + span(position.ordinal)


def test_what_could_not_be_read_has_no_trace() -> None:
    assert headers_of(ZERO) == COMMON


@pytest.mark.parametrize(
    "headers", [(), (("traceparent", b"x"),), COMMON, headers_of(Position(1, 2, 0)), tuple(reversed(COMMON))]
)
def test_our_version_or_none_is_read(headers: tuple[tuple[str, bytes], ...]) -> None:
    check_schema(headers)


@pytest.mark.parametrize("version", [b"2", b"", b"\xff" * 100, b"01"])
def test_another_version_is_refused_with_the_cure(version: bytes) -> None:
    for headers in ((COMMON[0], ("walvec-schema", version)), (("walvec-schema", version), COMMON[0])):
        with pytest.raises(DecodeError, match="upgrade"):
            check_schema(headers)
