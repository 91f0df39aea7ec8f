"""What a GET shows beside what can be changed, in the body of a PUT: its whole answer may be sent back. Pure.

What names a thing, or is what it is, may be given as it stands: another value is a wish, and refused by name. What only
tells of its state may have moved since it was read, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from api.problems import invalid

_CURE = "Leave it out, or send it as GET shows it."


def refuse_others(body: BaseModel, known: Mapping[str, Collection[Any]], cures: Mapping[str, str]) -> None:
    """`known`: by field, the values that it has. Null is left out. Raises Problem."""
    for name, values in known.items():
        given = getattr(body, name)
        if given is not None and given not in values:
            raise invalid(f"{name}: it cannot be changed.", cures.get(name, _CURE))
