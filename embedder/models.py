"""Providers as the API sees them: query vectors, defaults, what a definition may ask. Implements api.ports.Models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from embedder.packing import cut
from embedder.providers import registry
from embedder.providers.port import Provider
from walvec.contracts.errors import DefinitionError
from walvec.definitions.model import EmbeddingProvider, Generation
from walvec.runtime.settings import Settings

_KEPT = 32


class ModelAccess:
    """Keeps a client per provider definition and model, so that a search does not pay for a new connection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: OrderedDict[tuple[object, ...], Provider] = OrderedDict()

    async def embed_query(self, provider: EmbeddingProvider, generation: Generation, text: str) -> np.ndarray:
        found = await self._provider(provider, generation)
        limit = found.limits.max_text_tokens
        matrix = await found.embed([cut(text, limit) if limit else text], kind="query")
        vector: np.ndarray = matrix[0]
        return vector

    async def _provider(self, provider: EmbeddingProvider, generation: Generation) -> Provider:
        model, dimensions = generation.embedding_model, generation.embedding_dimensions
        key = (provider.id, provider.provider, provider.api_key, provider.base_url, model, dimensions)
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = registry.make(provider, model, dimensions, self._settings)
            if len(self._open) > _KEPT:
                _, oldest = self._open.popitem(last=False)
                await oldest.close()
        self._open.move_to_end(key)
        return found

    def defaults(self, provider: str) -> tuple[str | None, int | None]:
        models = registry.kind_of(provider).models
        return models[0] if models else (None, None)

    async def check(self, provider: EmbeddingProvider, model: str, dimensions: int | None) -> int:
        kind = registry.kind_of(provider.provider)
        known = dict(kind.models)
        own = known.get(model)
        if own is None and kind.closed:
            raise DefinitionError(
                f'provider kind "{provider.provider}" has no model "{model}".', f"Use one of: {', '.join(known)}."
            )
        if own is None and dimensions is None:
            raise DefinitionError(
                f'the dimensions of model "{model}" are not known.', "Set embedding_dimensions on the vector table."
            )
        if dimensions is None:
            assert own is not None
            dimensions = own
        if dimensions < 1:
            raise DefinitionError(f"embedding_dimensions {dimensions} is not above 0.", "Set the model's dimensions.")
        if own is not None and dimensions != own and (model not in kind.resizable or dimensions > own):
            choice = f"Set embedding_dimensions to {own} or leave it out."
            if model in kind.resizable:
                choice = f"Set embedding_dimensions to at most {own}."
            raise DefinitionError(f'model "{model}" gives {own} dimensions, not {dimensions}.', choice)
        registry.make(provider, model, dimensions, self._settings)  # its own complaints: address, limits
        return dimensions

    def check_provider(self, provider: EmbeddingProvider) -> None:
        registry.check(provider, self._settings)

    def providers(self) -> Mapping[str, Sequence[tuple[str, int]]]:
        return {name: tuple(kind.models) for name, kind in registry.KINDS.items()}

    async def close(self) -> None:
        while self._open:
            _, provider = self._open.popitem()
            await provider.close()
