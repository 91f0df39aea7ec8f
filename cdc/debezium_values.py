"""A value of a Debezium record -> the text that Postgres itself would send. Pure.

Law: the text is exact or it is not given. Where a record has lost something (a double for a numeric, an interval as
microseconds, a number whose unit nobody tells) the answer is UNCHANGED: the row is read again by key then, once its
transaction is visible. Next: `debezium` decodes whole records with it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from cdc.pgoutput import UNCHANGED, Value
from walvec.contracts.errors import DecodeError
from walvec.contracts.values import format_array
from walvec.definitions.model import SourceColumn

FieldSchema = Mapping[str, Any]
_NO_SCHEMA: FieldSchema = {}
_TEXTS = frozenset(
    {"text", "character varying", "character", '"char"', "name", "uuid", "json", "jsonb", "xml"}
    | {"inet", "cidr", "macaddr", "macaddr8"}
)
_EXTENSION_TEXTS = frozenset({"citext", "ltree"})
_INTEGERS = frozenset({"smallint", "integer", "bigint", "oid"})
_EPOCH = datetime(1970, 1, 1)
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?")
_CLOCK = re.compile(r"(\d\d:\d\d)(:\d\d)?(?:\.(\d+))?Z?")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_OLDEST = "1000-01-01"
_SCALED = re.compile(r"numeric\((\d+),(\d+)\)")
_CYCLE_DAYS = 146_097
_UNITS = {"Timestamp": 1_000, "MicroTimestamp": 1, "Time": 1_000, "MicroTime": 1}


class Values:
    """Converts the values of one connector's records.

    `unavailable`: its placeholder for unchanged TOAST values; `enums`: oids of the source's enum types.
    """

    def __init__(self, unavailable: str, enums: Collection[int] = ()) -> None:
        raw = unavailable.encode()
        self._enums = frozenset(enums)
        self._texts = frozenset({unavailable, base64.b64encode(raw).decode(), raw.hex()})
        self._bytes = list(raw)
        self._unavailable = unavailable

    def unavailable(self, value: Any) -> bool:
        """Whether it stands for a value that was not sent: as text, as bytes, in an array, in a map."""
        if isinstance(value, str):
            return value in self._texts
        if isinstance(value, list):
            return value == [self._unavailable] or (len(value) > 1 and value == self._bytes)
        return isinstance(value, dict) and value == {self._unavailable: self._unavailable}

    def text(self, value: Any, column: SourceColumn, schema: FieldSchema | None) -> Value:
        """Postgres text, None for NULL, or UNCHANGED for what must be read from the source. Raises DecodeError."""
        if value is None:
            return UNCHANGED if _doubtful(column, schema) else None
        if self.unavailable(value):
            return UNCHANGED
        try:
            if column.codec.startswith("array:"):
                return _array(value, column, schema or _NO_SCHEMA)
            if column.type_oid in self._enums and isinstance(value, str):
                return value.encode()
            return _scalar(value, column.base_type, column.type, schema or _NO_SCHEMA)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, InvalidOperation, binascii.Error) as e:
            raise DecodeError(f'column "{column.name}" holds a value that is not of type {column.type}.') from e


def key_refused(column: SourceColumn) -> bool:
    """Whether no record tells a value of this type exactly, so that no row could be found again by it."""
    base = column.base_type
    if column.codec.startswith("array:"):
        return True
    if base == "numeric":
        return _SCALED.fullmatch(column.type) is None
    known = base in _TEXTS or base in _INTEGERS or base in _BY_TYPE or base.rpartition(".")[2] in _EXTENSION_TEXTS
    return not known and not column.user_defined


def _scalar(value: Any, base_type: str, type_: str, schema: FieldSchema) -> Value:
    if base_type in _TEXTS or base_type.rpartition(".")[2].strip('"') in _EXTENSION_TEXTS:
        return value.encode() if isinstance(value, str) and schema.get("type") != "bytes" else UNCHANGED
    if base_type in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("not an integer")
        return b"%d" % value
    if base_type == "numeric":
        return _numeric(value, type_, schema)
    found = _BY_TYPE.get(base_type)
    if found is not None:
        return found(value, schema)
    if str(schema.get("name", "")) == "io.debezium.data.Enum" and isinstance(value, str):
        return value.encode()
    return UNCHANGED


def _doubtful(column: SourceColumn, schema: FieldSchema | None) -> bool:
    """Whether the connector writes null for values that are not NULL: NaN among precise numerics, all that has type
    name, times that nanoseconds cannot hold."""
    if column.codec.startswith("array:"):
        return False
    if column.base_type == "numeric":
        return schema is None or schema.get("type") not in ("string", "double")
    if column.base_type.startswith("timestamp"):
        return schema is None or "Nano" in str(schema.get("name"))
    return column.base_type == "name"


def _array(value: Any, column: SourceColumn, schema: FieldSchema) -> Value:
    if not isinstance(value, list):
        return UNCHANGED
    items = schema.get("items") or _NO_SCHEMA
    texts: list[str] = []
    for element in value:
        if isinstance(element, list):
            return UNCHANGED
        # an inner array comes as null, so a null may be one
        raw = (
            UNCHANGED if element is None else _scalar(element, column.base_type, column.type.removesuffix("[]"), items)
        )
        if not isinstance(raw, bytes):
            return UNCHANGED
        texts.append(raw.decode())
    return format_array(texts, str).encode()


def _boolean(value: Any, schema: FieldSchema) -> Value:
    if not isinstance(value, bool):
        raise ValueError("not a boolean")
    return b"t" if value else b"f"


def _double(value: Any, schema: FieldSchema) -> Value:
    return float_text(float(value), digits=15, shortest=repr).encode()


def _single(value: Any, schema: FieldSchema) -> Value:
    return float_text(float(value), digits=6, shortest=lambda x: str(np.float32(x))).encode()


def float_text(value: float, *, digits: int, shortest: Callable[[float], str]) -> str:
    """As float8out and float4out print with extra_float_digits = 1: shortest digits, an exponent from `digits` on."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    sign, figures, exponent = Decimal(shortest(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    minus = "-" if sign else ""
    if not any(figures):
        return minus + "0"
    mantissa = "".join(map(str, figures))
    scientific = len(mantissa) - 1 + exponent
    if -5 < scientific < digits:
        return minus + format(Decimal((0, figures, exponent)), "f")
    tail = "." + mantissa[1:] if len(mantissa) > 1 else ""
    return f"{minus}{mantissa[0]}{tail}e{'-' if scientific < 0 else '+'}{abs(scientific):02d}"


def _numeric(value: Any, type_: str, schema: FieldSchema) -> Value:
    """Exact where the scale is told: a numeric without one comes without its trailing zeros."""
    if schema.get("name") == "org.apache.kafka.connect.data.Decimal" and isinstance(value, str):
        return _decimal(value, int(schema.get("parameters", _NO_SCHEMA)["scale"]))
    scaled = _SCALED.fullmatch(type_)
    if scaled is None or isinstance(value, bool | dict):
        return UNCHANGED
    precision, scale = int(scaled[1]), int(scaled[2])
    if isinstance(value, int | float):
        if precision > 15:
            return UNCHANGED  # more digits than a double has
        value = repr(value)
    elif schema.get("type") != "string" and "." not in value:
        return UNCHANGED  # without a schema: base64, perhaps
    found = Decimal(value)
    return format(found.quantize(Decimal((0, (1,), -scale))), "f").encode() if found.is_finite() else UNCHANGED


def _decimal(value: str, scale: int) -> bytes:
    unscaled = int.from_bytes(base64.b64decode(value, validate=True), "big", signed=True)
    digits = tuple(int(d) for d in str(abs(unscaled)))
    return format(Decimal((int(unscaled < 0), digits, -scale)), "f").encode()


def _date(value: Any, schema: FieldSchema) -> Value:
    if isinstance(value, str):
        told = _DAY.match(value)
        return told[0].encode() if told and value[10:] in ("", "Z") and value >= _OLDEST else UNCHANGED
    if -719_162 <= value < -354_285:  # to the year 1000: snapshots say so of years before Christ
        return UNCHANGED
    if not -2_440_588 <= value <= 106_000_000:  # from 4713 BC; the infinities lie beyond
        return UNCHANGED
    cycles, rest = divmod(value, _CYCLE_DAYS)  # the calendar repeats itself every 400 years
    found = date(1970, 1, 1) + timedelta(days=rest)
    year = found.year + 400 * cycles
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04d}-{found.month:02d}-{found.day:02d}{era}".encode()


def _microseconds(value: Any, schema: FieldSchema) -> int | None:
    """None where the unit is not told, or where it is coarser than the column."""
    name = str(schema.get("name", ""))
    if not name.startswith("io.debezium.time.") or isinstance(value, bool) or not isinstance(value, int):
        return None
    unit = name.rpartition(".")[2]
    if unit.startswith("Nano"):
        return value // 1000 if value % 1000 == 0 else None
    scale = _UNITS.get(unit)
    return None if scale is None else value * scale


def _timestamp(value: Any, schema: FieldSchema) -> Value:
    if isinstance(value, str):
        found = _ISO.fullmatch(value)
        if found is None or value < _OLDEST:
            return UNCHANGED
        return f"{found[1]} {found[2]}{found[3] or ':00'}{_fraction(found[4])}".encode()
    micros = _microseconds(value, schema)
    if micros is None or not -30_610_224_000_000_000 <= micros < 253_402_300_800_000_000:
        return UNCHANGED
    moment = _EPOCH + timedelta(microseconds=micros)
    clock, _, rest = moment.isoformat(" ").partition(".")
    return f"{clock}{_fraction(rest)}".encode()


def _timestamptz(value: Any, schema: FieldSchema) -> Value:
    if value in ("infinity", "-infinity"):
        return str(value).encode()
    found = _ISO.fullmatch(value) if isinstance(value, str) else None
    if found is None or not found[5] or value < _OLDEST:
        return UNCHANGED
    day, clock = found[1], f"{found[2]}{found[3] or ':00'}"
    if found[5] not in ("Z", "+00:00"):
        moment = datetime.fromisoformat(f"{day}T{clock}{found[5]}").astimezone(UTC)
        day, clock = moment.date().isoformat(), f"{moment:%H:%M:%S}"
    return f"{day} {clock}{_fraction(found[4])}+00".encode()


def _time(value: Any, schema: FieldSchema) -> Value:
    if isinstance(value, str):
        found = _CLOCK.fullmatch(value)
        if found is None or value.startswith("00:00:00"):  # or 24:00
            return UNCHANGED
        return f"{found[1]}{found[2] or ':00'}{_fraction(found[3])}".encode()
    micros = _microseconds(value, schema)
    if micros is None or not 0 <= micros <= 86_400_000_000:
        return UNCHANGED
    seconds, rest = divmod(micros, 1_000_000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{clock}{_fraction(f'{rest:06d}')}".encode()


def _fraction(digits: str | None) -> str:
    kept = (digits or "")[:6].rstrip("0")
    return f".{kept}" if kept else ""


def _bytea(value: Any, schema: FieldSchema) -> Value:
    if schema.get("type") != "bytes" or not isinstance(value, str):
        return UNCHANGED  # base64 or hexadecimal digits: a string does not tell
    return b"\\x" + base64.b64decode(value, validate=True).hex().encode()


_BY_TYPE: dict[str, Callable[[Any, FieldSchema], Value]] = {
    "boolean": _boolean,
    "double precision": _double,
    "real": _single,
    "date": _date,
    "timestamp without time zone": _timestamp,
    "timestamp with time zone": _timestamptz,
    "time without time zone": _time,
    "bytea": _bytea,
}
