"""How many rows of a source table have a text to embed: as many as the store comes to hold. Pure.

Law: a row counts exactly when `TextSpec.compose` gives it a text. Next: `source` asks.
"""

from __future__ import annotations

import codecs

from psycopg import sql

from cdc.reading import Target
from walvec.contracts.text import TextSpec
from walvec.definitions.model import Generation

_BLANKS = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
_PEEK = 64


_CODECS = {"UTF8": "utf-8", "KOI8R": "koi8_r", "KOI8U": "koi8_u", "EUC_CN": "gb2312"}
"""Of server encodings that Python has no such name for, beside the family of WIN1252."""


def blanks_of(encoding: str) -> str:
    """White space that a database of this server_encoding can hold: a literal must have no other character. SQL_ASCII
    says nothing of its bytes, and counts as ASCII."""
    try:
        codec = codecs.lookup(_CODECS.get(encoding) or encoding.replace("WIN", "cp")).name
    except LookupError:
        codec = "ascii"
    return _BLANKS.encode(codec, "ignore").decode(codec)


def count_query(target: Target, generation: Generation, *, encoding: str) -> sql.Composed:
    """`encoding`: the database's, as server_encoding spells it."""
    blanks = blanks_of(encoding)
    padded = {c.name for c in generation.source if c.base_type == "character"}
    condition = _has_text(generation.text_spec, padded, sql.Literal(blanks))
    return sql.SQL("SELECT count(*) FROM {} WHERE {}").format(target.relation, condition)


def _has_text(spec: TextSpec, padded: set[str], blanks: sql.Literal) -> sql.Composable:
    """Cheap ones first: a length is known without a value that is stored apart."""
    parts = [(prefix, _text(name, name in padded)) for name, prefix in spec.columns]
    there = [sql.SQL("octet_length({}) > 0").format(text) for _, text in parts]
    sure = [found for found, (prefix, _) in zip(there, parts, strict=True) if _seen(prefix)]
    looked = [_not_blank(text, blanks) for prefix, text in parts if not _seen(prefix)]
    if _seen(spec.separator) and len(parts) > 1:  # it stands between any two
        counted = sql.SQL(" + ").join(sql.SQL("coalesce(({})::int, 0)").format(found) for found in there)
        sure.append(sql.SQL("{} > 1").format(counted))
    return sql.SQL("({})").format(sql.SQL(" OR ").join([*sure, *looked]))


def _text(name: str, padded: bool) -> sql.Composable:
    """As it is embedded: a cast takes the padding off char(n), its output function leaves it."""
    return sql.SQL("concat({})" if padded else "{}::text").format(sql.Identifier(name))


def _not_blank(text: sql.Composable, blanks: sql.Literal) -> sql.Composable:
    """The head of a long text mostly tells, and is read without the rest."""
    return sql.SQL("btrim(left({0}, {1}), {2}) <> '' OR btrim({0}, {2}) <> ''").format(text, _PEEK, blanks)


def _seen(text: str) -> bool:
    return bool(text) and not text.isspace()
