"""The place where a query's page ended, as text that a client hands back. Pure.

A cursor fits the query, filters and generation that it was made for, and no other. It carries the vector of a text: a
provider may embed the same text a little differently the next time, and would be paid twice.
"""

from __future__ import annotations

import binascii
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from api.problems import invalid
from api.responses import dump
from walvec.contracts.stores import Place

_AGAIN = "Ask for the first page again, without a cursor."


def fingerprint(table_id: str, query: str | None, vector: bytes, filters: Mapping[str, Any] | None, least: Any) -> str:
    """`vector`: of a query without a text."""
    told = dump([table_id, query, least, filters or None], ordered=True)
    return blake2b(told + b"\x00" + vector, digest_size=12).hexdigest()


def write(place: Place, mark: str, generation: int, vector: np.ndarray | None) -> str:
    parts: list[Any] = [mark, generation, place.distance, place.identity.hex(), place.chunk, place.rank]
    body = orjson.dumps(parts)
    tail = b"" if vector is None else vector.astype("<f4").tobytes()
    return urlsafe_b64encode(len(body).to_bytes(2, "big") + body + tail).rstrip(b"=").decode()


def read(cursor: str, mark: str, generation: int, dimensions: int) -> tuple[Place, np.ndarray | None]:
    """Raises Problem."""
    try:
        raw = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        end = 2 + int.from_bytes(raw[:2], "big")
        found, number, distance, identity, chunk, rank = orjson.loads(raw[2:end])
        place = Place(float(distance), bytes.fromhex(identity), int(chunk), int(rank))
        vector = np.frombuffer(raw[end:], dtype="<f4") if len(raw) > end else None
    except (ValueError, TypeError, UnicodeEncodeError, binascii.Error, OverflowError) as e:
        raise invalid("cursor: it is not one of this API's.", _AGAIN) from e
    if found != mark:
        raise invalid("cursor: it belongs to another query, other filters or another vector table.", _AGAIN)
    if number != generation:
        raise invalid("cursor: the vector table has got new vectors since that page.", _AGAIN)
    whole = vector is None or (len(vector) == dimensions and bool(np.isfinite(vector).all()) and bool(vector.any()))
    sound = math.isfinite(place.distance) and len(place.identity) == 16 and 0 <= place.rank < 2**31
    if not (whole and sound and 0 <= place.chunk < 2**31):
        raise invalid("cursor: it is not one of this API's.", _AGAIN)
    return place, vector
