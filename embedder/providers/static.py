"""The static model: token vectors of this package, mean-pooled. No network, no key, no limit on a text's length."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from embedder.packing import Limits
from embedder.providers.port import Kind, check_matrix
from embedder.providers.words import WordSums
from walvec.contracts.errors import DefinitionError

MODEL = "minilm-static-256"
DIMENSIONS = 256
_FOLDER = Path(__file__).parent / "models"
_STEP_TEXTS = 256
_STEP_CHARACTERS = 400_000


@lru_cache(maxsize=4)
def _load(name: str) -> tuple[Any, WordSums]:
    from model2vec import StaticModel

    # it warns that the limit of 512 tokens is lifted, which is what we want
    logging.getLogger("model2vec").setLevel(logging.ERROR)
    model = StaticModel.from_pretrained(_FOLDER / name, max_length=None)
    return model, WordSums(model)


def _steps(texts: Sequence[str], chosen: Sequence[int]) -> Iterator[Sequence[int]]:
    """Small steps: a long text would otherwise gather its token vectors beside hundreds of others."""
    start = size = 0
    for n, i in enumerate(chosen):
        if n > start and (n - start >= _STEP_TEXTS or size + len(texts[i]) > _STEP_CHARACTERS):
            yield chosen[start:n]
            start, size = n, 0
        size += len(texts[i])
    if chosen:
        yield chosen[start:]


# One at a time: the tokenizer uses the cores by itself, and is not safe for two threads at once.
_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="static-model")
_BUSY = threading.Lock()
_SHORT_CHARACTERS = 400


class StaticProvider:
    """Runs in a thread, so that the event loop stays live; but a query's few words, which take less time than a thread
    needs to hear of them."""

    def __init__(self, model: str = MODEL, dimensions: int = DIMENSIONS) -> None:
        if model != MODEL:
            raise DefinitionError(f'the static provider has no model "{model}".', f'Use "{MODEL}".')
        if dimensions != DIMENSIONS:
            raise DefinitionError(
                f'"{MODEL}" gives {DIMENSIONS} dimensions, not {dimensions}.',
                f"Set embedding_dimensions to {DIMENSIONS} or leave it out.",
            )
        self._model = model
        self._loaded = False
        self._limits = Limits(max_items=512, max_bytes=4 * 1024**2, max_in_flight=2, local=True)

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def tokens(self) -> None:
        return None

    async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        if len(texts) == 1 and len(texts[0]) <= _SHORT_CHARACTERS and self._loaded and _BUSY.acquire(blocking=False):
            try:
                return self._encode(texts)
            finally:
                _BUSY.release()
        return await asyncio.get_running_loop().run_in_executor(_THREAD, self._alone, texts)

    def _alone(self, texts: Sequence[str]) -> np.ndarray:
        with _BUSY:
            found = self._encode(texts)
        self._loaded = True
        return found

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        model, words = _load(self._model)
        if len(texts) == 1 and words.knows(texts[0]):
            return check_matrix(words.encode(texts), 1, DIMENSIONS)
        matrix = np.empty((len(texts), DIMENSIONS), np.float32)
        plain = [i for i, text in enumerate(texts) if words.knows(text)]
        other = sorted(set(range(len(texts))).difference(plain))
        for step in _steps(texts, plain):
            matrix[step] = words.encode([texts[i] for i in step])
        for step in _steps(texts, other):
            matrix[step] = model.encode([texts[i] for i in step], max_length=None, use_multiprocessing=False)
        return check_matrix(matrix, len(texts), DIMENSIONS)

    async def close(self) -> None:
        """Nothing is held: the model stays loaded for the process."""
