"""Headers of records, for every tool that reads topics: what the value is, and which change it stands for.

`traceparent` (W3C Trace Context) is a function of the position alone, so every stage writes the same trace without
carrying one: the trace is the transaction (epoch and commit LSN), the span the change in it. A span of zeros would be
invalid and ordinal 0 is a stamp's, so spans begin with a 1. Logs that drop headers lose nothing that walvec needs.
"""

from __future__ import annotations

from walvec.contracts.errors import DecodeError
from walvec.contracts.position import ZERO, Position
from walvec.contracts.wire import UPGRADE, VERSION

Headers = tuple[tuple[str, bytes], ...]

SCHEMA = "walvec-schema"
TRACE = "traceparent"
CONTENT_TYPE_HEADER = ("content-type", b"application/json")
SCHEMA_HEADER = (SCHEMA, b"%d" % VERSION)
COMMON: Headers = (CONTENT_TYPE_HEADER, SCHEMA_HEADER)


def trace(epoch: int, lsn: int) -> bytes:
    """What the traceparents of one transaction begin with; `span` is the rest."""
    return b"00-%016x%016x-1" % (epoch, lsn)


def span(ordinal: int) -> bytes:
    return b"%015x-01" % ordinal


def headers_of(position: Position) -> Headers:
    """ZERO, the position of what could not be read, has no trace."""
    if position == ZERO:
        return COMMON
    return (*COMMON, (TRACE, trace(position.epoch, position.lsn) + span(position.ordinal)))


def check_schema(headers: Headers) -> None:
    """Raises DecodeError where a header names another version than ours; other tools need not write one."""
    if len(headers) > 1 and headers[1] == SCHEMA_HEADER:
        return
    for name, value in headers:
        if name == SCHEMA and value != SCHEMA_HEADER[1]:
            version = value[:20].decode("utf-8", "replace")
            raise DecodeError(
                f"header {SCHEMA} says version {version!r}, not {VERSION}.",
                UPGRADE,
            )
