"""What a table has asked of providers, and what its worker has done, as numbers. Next: `service` reports them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from walvec.contracts.histograms import NUMBERS, Histogram

Saved = Literal["unchanged", "superseded", "coalesced", "same_batch", "store_hash", "memory"]
"""Why a text was not sent: see walvec_texts_saved_total in docs/metrics.md."""
_REASONS: tuple[Saved, ...] = get_args(Saved)


@dataclass(slots=True)
class Usage:
    """What a table has asked of providers, and what its worker has done; read by its report and its metrics.

    `read`, `written`: records of the log; `embedded`: rows that got a vector; `buried`: dead letters by kind.
    """

    texts_sent: int = 0
    texts_cut: int = 0
    requests: int = 0
    tokens: int = 0
    retries: dict[str, int] = field(default_factory=lambda: {"wait": 0, "stop": 0, "input": 0, "answer": 0})
    saved: dict[Saved, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    read: int = 0
    written: int = 0
    embedded: int = 0
    buried: Counter[str] = field(default_factory=Counter)
    batches: Histogram = field(default_factory=lambda: Histogram(NUMBERS))
    log_to_embedded: Histogram = field(default_factory=Histogram)

    def save(self, reason: Saved, texts: int = 1) -> None:
        self.saved[reason] += texts

    @property
    def texts_saved(self) -> int:
        """Texts that were composed and not sent; what was coalesced was never composed."""
        return sum(self.saved.values()) - self.saved["coalesced"]
