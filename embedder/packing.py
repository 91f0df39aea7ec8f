"""Texts become requests that a provider takes: by items, tokens and bytes. Pure.

Limits are data, and learned down when an answer names one. Next: `wanted` fills them, `dispatch` sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

_TOKENS_PER_BYTE = 0.25  # what OpenAI's own request check uses, whatever the tokenizer says
_LOWEST = 16  # tokens; bytes four times that


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold. 0 = no limit. `max_text_tokens`: a longer text is cut (counted)."""

    max_items: int = 512
    max_tokens: int = 0
    max_bytes: int = 0
    max_in_flight: int = 4
    max_text_tokens: int = 0
    local: bool = False
    """Computed in this process: it never pauses, and nothing is paid for."""


class Sized(Protocol):
    @property
    def size(self) -> int:
        """UTF-8 bytes."""


def estimate_tokens(size: int) -> int:
    """Tokens of a text of so many UTF-8 bytes, never 0."""
    return max(1, int(size * _TOKENS_PER_BYTE + 0.999))


def head(items: Sequence[Sized], limits: Limits) -> int:
    """How many of the first items make one request; at least 1 (a text above a limit goes alone)."""
    count = tokens = size = 0
    for item in items:
        size += item.size
        tokens += estimate_tokens(item.size)
        if count and (
            count >= limits.max_items
            or (limits.max_tokens and tokens > limits.max_tokens)
            or (limits.max_bytes and size > limits.max_bytes)
        ):
            break
        count += 1
    return count


def learn(limits: Limits, limit: str, items: Sequence[Sized]) -> Limits:
    """Lower the limit that a refused request of these items was above: below half of what was sent."""
    if limit == "items":
        return replace(limits, max_items=max(1, min(limits.max_items, len(items) // 2)))
    size = sum(i.size for i in items)
    if limit == "tokens":
        tokens = max(_LOWEST, sum(estimate_tokens(i.size) for i in items) // 2)
        return replace(limits, max_tokens=min(limits.max_tokens or tokens, tokens))
    half = max(4 * _LOWEST, size // 2)
    return replace(limits, max_bytes=min(limits.max_bytes or half, half))


def cut(text: str, max_tokens: int) -> str:
    """The longest head of a text within the estimate; never ends inside a character."""
    limit = int(max_tokens / _TOKENS_PER_BYTE)
    if len(text) * 4 <= limit:
        return text
    raw = text.encode("utf-8", "surrogatepass")
    return text if len(raw) <= limit else raw[:limit].decode("utf-8", "ignore")
