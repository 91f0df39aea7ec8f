"""The documented models of each kind of embedding provider, and which of them this walvec can run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.problems import Problem

Models = Sequence[tuple[str, int]]

DOCUMENTED: Mapping[str, Models] = {
    "openai": (("text-embedding-3-small", 1536), ("text-embedding-3-large", 3072), ("text-embedding-ada-002", 1536)),
    "gemini": (("gemini-embedding-001", 3072), ("text-embedding-005", 768), ("text-embedding-004", 768)),
    "voyage": (
        ("voyage-3.5", 1024),
        ("voyage-3.5-lite", 512),
        ("voyage-code-3", 1024),
        ("voyage-3-large", 1024),
        ("voyage-3-lite", 512),
    ),
}
"""With the dimensions that the documentation promises."""
_NOT_YET = frozenset({*DOCUMENTED, "cohere"})


def catalogue(runnable: Mapping[str, Models]) -> list[dict[str, Any]]:
    """By kind; `runnable`: what the embedder has adapters for. A kind without models takes any model by name."""
    kinds = [*runnable, *(k for k in DOCUMENTED if k not in runnable)]
    return [
        {
            "provider": kind,
            "available": kind in runnable,
            "models": [{"model": m, "dimensions": d} for m, d in models_of(kind, runnable)],
        }
        for kind in kinds
        if kind != "fake"
    ]


def models_of(kind: str, runnable: Mapping[str, Models]) -> Models:
    known = dict(DOCUMENTED.get(kind, ()))
    return tuple({**dict(runnable.get(kind, ())), **known}.items())


def refuse_unrunnable(kind: str, runnable: Mapping[str, Models]) -> None:
    """Raises Problem for a kind that is known, and that no adapter runs."""
    if kind in _NOT_YET and kind not in runnable:
        raise Problem(
            501,
            "not_supported",
            f"provider: this version of walvec cannot run {kind!r} yet.",
            "Use " + ", ".join(k for k in runnable if k != "fake") + "; an address that speaks OpenAI's protocol is of"
            " kind custom, with its base_url.",
        )
