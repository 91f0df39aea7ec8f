"""ETag and If-Match: who has not seen the newest definition does not overwrite it. Pure.

Next: `walvec.definitions.revisions`.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header

from walvec.contracts.errors import PreconditionFailed
from walvec.definitions.model import VectorTable
from walvec.definitions.revisions import etag

IfMatch = Annotated[
    str | None, Header(description="ETag of the definition that the change was made of; `*`: of any.", max_length=1000)
]
_TAG = re.compile(r'\s*(?:,\s*)*(W/)?"([^"]*)"\s*(?:,|$)')


def tag(table: VectorTable) -> dict[str, str]:
    """The header of an answer that shows this definition."""
    return {"ETag": f'"{etag(table)}"'}


def demanded(table: VectorTable, if_match: str | None) -> str | None:
    """The revision that the table must have when it is written, if the client asks for one.

    Raises PreconditionFailed when the table has another one already. A weak tag never matches (RFC 9110, 13.1.1).
    """
    if if_match is None or if_match.strip() == "*":
        return None
    now = etag(table)
    if now in strong_tags(if_match):
        return now
    raise PreconditionFailed(
        f"vector table {table.name!r} has been changed since, or If-Match is no strong ETag of it.",
        "Read it again, and make the change of what it is now.",
    )


def strong_tags(if_match: str) -> set[str]:
    """Those of a list; nothing where it cannot be read."""
    found, at = set(), 0
    while at < len(if_match):
        match = _TAG.match(if_match, at)
        if match is None:
            return set()
        if match[1] is None:
            found.add(match[2])
        at = match.end()
    return found
