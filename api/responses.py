"""Values as JSON answers. Law: never NaN, never half a character, times end in Z."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.responses import Response


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content)


def dump(content: Any, *, ordered: bool = False) -> bytes:
    """orjson writes NaN as null; what it cannot write (half a surrogate pair) is replaced, never refused. `ordered`: by
    the names of objects."""
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_SORT_KEYS if ordered else 0)
    try:
        return orjson.dumps(content, default=str, option=option)
    except TypeError:
        return orjson.dumps(_whole(content), default=str, option=option)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_whole(k): _whole(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return str(value)
    return value


def iso(ms: int | None) -> str | None:
    """Milliseconds since 1970 as a UTC time."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def key_json(key: bytes | None) -> Any:
    """A canonical key as its JSON object; null where the record had no readable key."""
    if not key:
        return None
    try:
        return orjson.loads(key)
    except orjson.JSONDecodeError:
        return key.decode("utf-8", "replace")
