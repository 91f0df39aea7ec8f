"""Kind of provider -> how it is made and which models it is known to have. One line per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal
from urllib.parse import urlsplit

from embedder.packing import Limits
from embedder.providers import fake, guarded, openai, static
from embedder.providers.port import Provider
from walvec.contracts.errors import DefinitionError
from walvec.definitions.model import EmbeddingProvider
from walvec.runtime.settings import Settings

Make = Callable[[EmbeddingProvider, str, int, Settings], Provider]
_LIMIT_NAMES = ("max_items", "max_tokens", "max_bytes", "max_in_flight", "max_text_tokens")


@dataclass(frozen=True, slots=True)
class ProviderKind:
    """`models`: (name, dimensions) where known, the default first. `resizable`: models that give fewer on request."""

    make: Make
    models: Sequence[tuple[str, int]] = ()
    resizable: frozenset[str] = frozenset()
    closed: bool = False
    """No other model than those of `models` exists."""
    needs: Literal["api_key", "base_url"] | None = None
    """Without it nobody answers, unless the settings name another address; nor is a key needed at another address."""


def limits_of(default: Limits, chosen: Mapping[str, Any]) -> Limits:
    """The definition's limits above the kind's. Raises DefinitionError."""
    known: dict[str, Any] = {}
    for name in chosen:
        if name not in _LIMIT_NAMES:
            near = get_close_matches(name, _LIMIT_NAMES, 1)
            cure = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(_LIMIT_NAMES)}."
            raise DefinitionError(f"there is no limit limits.{name}.", cure)
    for name in _LIMIT_NAMES:
        if chosen.get(name) is None:
            continue
        value = chosen[name]
        lowest = 1 if name in ("max_items", "max_in_flight") else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise DefinitionError(f"limits.{name} is not a whole number from {lowest} on: {value!r}.")
        known[name] = value
    return replace(default, **known)


def _static(provider: EmbeddingProvider, model: str, dimensions: int, settings: Settings) -> Provider:
    return static.StaticProvider(model, dimensions)


def _fake(provider: EmbeddingProvider, model: str, dimensions: int, settings: Settings) -> Provider:
    return fake.FakeProvider(dimensions, limits_of(Limits(max_items=512, max_in_flight=4, local=True), provider.limits))


def _compatible(kind: str, base_url: str | None) -> Make:
    def make(provider: EmbeddingProvider, model: str, dimensions: int, settings: Settings) -> Provider:
        address = settings.providers.get(kind)
        url = provider.base_url or (address.base_url if address else None) or base_url
        if not url:
            raise DefinitionError(f'provider "{provider.name}" has no base_url.', "Set base_url (it ends with /v1).")
        return openai.OpenAIProvider(
            model,
            dimensions,
            api_key=provider.api_key,
            base_url=url,
            limits=limits_of(openai.LIMITS, provider.limits),
            transport=guarded.transport(url) if provider.base_url else None,
        )

    return make


KINDS: dict[str, ProviderKind] = {
    "static": ProviderKind(_static, ((static.MODEL, static.DIMENSIONS),), closed=True),
    "openai": ProviderKind(
        _compatible("openai", openai.BASE_URL),
        tuple((name, dims) for name, (dims, _) in openai.CATALOGUE.items()),
        frozenset(name for name, (_, resizable) in openai.CATALOGUE.items() if resizable),
        needs="api_key",
    ),
    "fake": ProviderKind(_fake, ((fake.MODEL, 256),), frozenset((fake.MODEL,))),
    "custom": ProviderKind(_compatible("custom", None), needs="base_url"),
    "ollama": ProviderKind(_compatible("ollama", "http://127.0.0.1:11434/v1")),
}


def kind_of(name: str) -> ProviderKind:
    """Raises DefinitionError for a kind that is not there."""
    found = KINDS.get(name)
    if found is None:
        raise DefinitionError(f'there is no embedding provider kind "{name}".', f"Use one of: {', '.join(KINDS)}.")
    return found


def _is_openai(url: str) -> bool:
    return (urlsplit(url).hostname or "").rstrip(".") == urlsplit(openai.BASE_URL).hostname


def check(provider: EmbeddingProvider, settings: Settings) -> None:
    """Whether anybody would answer it as it is. Raises DefinitionError."""
    needs = kind_of(provider.provider).needs
    configured = settings.providers.get(provider.provider)
    elsewhere = provider.base_url and not (needs == "api_key" and _is_openai(provider.base_url))
    given = needs and (getattr(provider, needs) or "").strip()
    if needs is None or given or elsewhere or (not provider.base_url and configured and configured.base_url):
        return
    cures = {
        "api_key": "Set api_key; or base_url, where a server of your own answers without one.",
        "base_url": "Set base_url (it ends with /v1).",
    }
    raise DefinitionError(
        f"{needs}: embedding provider {provider.name!r} is of kind {provider.provider}, which needs one.", cures[needs]
    )


def make(provider: EmbeddingProvider, model: str, dimensions: int, settings: Settings) -> Provider:
    """The adapter of one model. Raises DefinitionError."""
    return kind_of(provider.provider).make(provider, model, dimensions, settings)
