"""Lists in pages: `?limit=` 1..100 and an opaque `?cursor=`. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

from api.problems import invalid

T = TypeVar("T")


def page(
    items: Sequence[T], limit: int, cursor: str | None, id_of: Callable[[T], str]
) -> tuple[list[T], dict[str, Any]]:
    """`items` in their stable order -> one page and its `pagination` block. The cursor names the last item seen
    (deleted meanwhile: the list ends)."""
    start = 0
    if cursor is not None:
        last = _decode(cursor)
        ids = [id_of(i) for i in items]
        start = ids.index(last) + 1 if last in ids else len(items)
    found = list(items[start : start + limit])
    more = start + limit < len(items)
    following = _encode(id_of(found[-1])) if more and found else None
    return found, {"limit": limit, "has_more": more, "next_cursor": following}


def _encode(last: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps({"id": last})).decode()


def _decode(cursor: str) -> str:
    try:
        last = orjson.loads(base64.urlsafe_b64decode(cursor.encode()))["id"]
    except (ValueError, KeyError, TypeError, UnicodeError) as e:
        raise invalid("cursor: not one of ours.", "Use next_cursor of the previous page as it stands.") from e
    if not isinstance(last, str):
        raise invalid("cursor: not one of ours.", "Use next_cursor of the previous page as it stands.")
    return last
