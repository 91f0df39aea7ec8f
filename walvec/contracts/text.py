"""What is embedded for a row, and the hash that says whether two rows would get the same vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class TextSpec:
    """Embedding columns in their final order, each with its prefix."""

    columns: tuple[tuple[str, str], ...]
    separator: str = "\n"

    def compose(self, values: Mapping[str, str | None]) -> str | None:
        """Text of a row, or None where there is nothing to embed.

        `values` are Postgres texts by column name. NULL and `''` columns are skipped with their prefix; a text of only
        Unicode white space counts as empty. Nothing is trimmed or normalised. Raises KeyError for an absent
        column.
        """
        parts = []
        for name, prefix in self.columns:
            value = values[name]
            if value:
                parts.append(prefix + value)
        text = self.separator.join(parts)
        return text if text and not text.isspace() else None


def hasher(provider: str, model: str, dimensions: int) -> ContentHash:
    """The content hash of one model: equal hash = the same vector may be used."""
    head = "\x00".join((provider, model, str(dimensions), "")).encode()
    return ContentHash(blake2b(head, digest_size=16))


class ContentHash:
    """Callable `text -> 32 hexadecimal digits`."""

    __slots__ = ("_head",)

    def __init__(self, head: blake2b) -> None:
        self._head = head

    def __call__(self, text: str) -> str:
        h = self._head.copy()
        h.update(text.encode("utf-8", "surrogatepass"))
        return h.hexdigest()
