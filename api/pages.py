"""Lists in pages: `?limit=` 1..100 and an opaque `?cursor=`. Pure.

A cursor names a place in the order (when it was made, id), not an item or a number: whatever is added or removed
meanwhile, the next page begins behind the last item of this one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson

from api.problems import Problem, invalid

T = TypeVar("T")
Place = tuple[str, str]


def page(
    items: Iterable[T], limit: int, cursor: str | None, place: Callable[[T], Place], *, newest_first: bool = False
) -> tuple[list[T], dict[str, Any]]:
    """One page of the items in order of their places, and its `pagination` block."""
    ordered = sorted(((place(item), item) for item in items), key=lambda pair: pair[0], reverse=newest_first)
    if cursor is not None:
        last = place_of(cursor)
        ordered = [(at, item) for at, item in ordered if (at < last if newest_first else at > last)]
    found = ordered[:limit]
    more = len(ordered) > limit
    following = _encode(found[-1][0]) if more else None
    return [item for _, item in found], {"limit": limit, "has_more": more, "next_cursor": following}


def made(item: Any) -> Place:
    """Of what has both."""
    return item.created_at, item.id


def _encode(last: Place) -> str:
    return base64.urlsafe_b64encode(orjson.dumps({"at": last[0], "id": last[1]})).decode()


def place_of(cursor: str) -> Place:
    """Raises Problem for what no page has given out."""
    try:
        last = orjson.loads(base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True))
        at, name = last["at"], last["id"]
    except (ValueError, KeyError, TypeError, IndexError, binascii.Error) as e:
        raise foreign() from e
    if not isinstance(at, str) or not isinstance(name, str):
        raise foreign()
    return at, name


def foreign() -> Problem:
    """Of a cursor that is not this list's."""
    return invalid("cursor: not one of ours.", "Use next_cursor of the previous page as it stands.")
