"""The provider port: texts in, vectors out, failures in three classes. Next: `dispatch` decides what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from embedder.packing import Limits
from walvec.contracts.errors import ProviderWait

Kind = Literal["document", "query"]
Suspicion = Literal["answer", "dimensions", "server", "timeout"]


class ProviderSuspect(ProviderWait):
    """A failure that may be one text's fault: an answer that is not what was asked for, a 500, no answer in time.

    It counts as *wait* with bounded tries; then the request is halved. `good`: the vectors of an answer in which only
    the rows `bad` cannot be used.
    """

    def __init__(
        self,
        message: str,
        what: Suspicion,
        *,
        cure: str = "",
        retry_after: float | None = None,
        good: np.ndarray | None = None,
        bad: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(message, cure, retry_after)
        self.what = what
        self.good = good
        self.bad = bad


class Provider(Protocol):
    """One model of one provider. `embed` may be called concurrently, up to `limits.max_in_flight`."""

    @property
    def limits(self) -> Limits: ...

    @property
    def tokens(self) -> int | None:
        """As its answers have counted them so far; None when they do not tell."""

    async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        """(n, dims) float32, rows in the order of the texts, all finite. `texts` is never empty, nor is any of them.

        Raises ProviderWait (ProviderSuspect), ProviderStop, ProviderRejectedInput; nothing else. Cancellable.
        """

    async def close(self) -> None: ...


def check_matrix(matrix: np.ndarray, count: int, dimensions: int) -> np.ndarray:
    """What every answer must hold. Raises ProviderSuspect; rows that are not finite are named."""
    if matrix.ndim != 2 or matrix.shape[0] != count:
        raise ProviderSuspect(f"the provider answered {matrix.shape[0]} vectors for {count} texts.", "answer")
    if matrix.shape[1] != dimensions:
        raise ProviderSuspect(
            f"the provider answers vectors of {matrix.shape[1]} dimensions, the vector table wants {dimensions}.",
            "dimensions",
            cure=f"Set embedding_dimensions to {matrix.shape[1]}, or choose a model that gives {dimensions}.",
        )
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        bad = frozenset(int(i) for i in np.flatnonzero(~finite))
        raise ProviderSuspect(f"{len(bad)} of {count} vectors are not finite.", "answer", good=matrix, bad=bad)
    return matrix
