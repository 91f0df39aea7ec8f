"""What counting costs a batch, and what a scrape costs a role: `python -m tests.bench.metrics_bench`.

Figures are CPU times, so that other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cdc.counts import Counts as CdcCounts
from sink.worker import Counts as SinkCounts
from walvec.runtime.metrics import Metrics
from walvec.transport.records import Fetch, StoredRecord

BATCH = 2000
TABLES = 50


def microseconds(call: Callable[[], object], times: int) -> float:
    """CPU time of one call; the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - began) / times)
    return best * 1e6


def main() -> None:
    fetches = [Fetch(p, [StoredRecord(n, 0, b"k", b"v") for n in range(BATCH // 8)]) for p in range(8)]
    waited = [float(n % 700) for n in range(BATCH)]
    sink, cdc = SinkCounts(), CdcCounts()

    def sink_batch() -> None:
        sink.polled(fetches)
        sink.apply_seconds.add(0.02)
        sink.commit_to_stored.add_all(waited, unit=0.001)

    print(
        f"cdc, an append:            {microseconds(lambda: cdc.table('t').appended(BATCH, 0.01, 0.02), 5000):8.2f} µs"
    )
    micro = microseconds(sink_batch, 500)
    print(f"sink, a batch of {BATCH} rows: {micro:8.2f} µs = {micro / BATCH:.3f} µs a row")

    metrics = Metrics("sink")
    counts = [SinkCounts() for _ in range(TABLES)]
    with metrics.source(lambda: [s for n, c in enumerate(counts) for s in c.samples(f"table_{n}")]):
        body, _ = metrics.exposition()
        micro = microseconds(metrics.exposition, 5)
    print(f"a scrape of {TABLES} tables:     {micro / 1000:8.2f} ms, {len(body) / 1024:.0f} KB")


if __name__ == "__main__":
    main()
