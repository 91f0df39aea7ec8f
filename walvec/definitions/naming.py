"""A vector table's name -> names in SQL and on the log. Pure.

Views take letters of any script, as Postgres does; topics take ASCII alone, as Kafka does. Tables of before that was so
keep the names that they have.
"""

from __future__ import annotations

import unicodedata
from hashlib import sha256

_MAX_BYTES = 63
_HASH = 8
_SLUG = 40
# marks are parts of letters in many scripts; what separates words, or is not seen, becomes _
_APART = ("P", "Z", "C")


def view_name(name: str) -> str:
    """Letters, digits and signs of any script stay, in one spelling (NFC); the rest becomes `_`. One too long for
    Postgres ends with its hash."""
    found = "".join(map(_of_view, unicodedata.normalize("NFC", name)))
    return found if len(found.encode()) <= _MAX_BYTES else _cut(found, name)


def _of_view(c: str) -> str:
    if c.isascii():
        return c if c.isalnum() else "_"
    return "_" if unicodedata.category(c).startswith(_APART) else c


def _cut(found: str, name: str) -> str:
    head = found.encode()[: _MAX_BYTES - 1 - _HASH].decode(errors="ignore")
    return f"{head}_{sha256(name.encode()).hexdigest()[:_HASH]}"


def ascii_view_name(name: str) -> str:
    """As it was: characters outside [A-Za-z0-9_] become `_`."""
    found = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return found if len(found) <= _MAX_BYTES else _cut(found, name)


def storage_name(table_id: str, name: str) -> str:
    """`vt_<8 chars of id>_<slug>`: the id tells them apart, the slug is for people: letters without their accents, ß as
    ss, and nothing of scripts that are not Latin."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    slug = "".join(c if _of_topic(c) else "_" for c in plain if not unicodedata.combining(c))[:_SLUG]
    return _stored(table_id, slug if name.isascii() else slug.strip("_"))


def ascii_storage_name(table_id: str, name: str) -> str:
    """As it was: what is not ASCII becomes `_`."""
    return _stored(table_id, "".join(c if _of_topic(c) else "_" for c in name.lower())[:_SLUG])


def _of_topic(c: str) -> bool:
    return c.isascii() and (c.isalnum() or c in "-_")


def _stored(table_id: str, slug: str) -> str:
    head = f"vt_{table_id.removeprefix('vt_')[:8]}"
    return f"{head}_{slug}" if slug else head
