"""Rows to measure with: the real catalogue where it is at hand, else (it says so) generated ones of the same shape."""

from __future__ import annotations

import csv
import gzip
import os
import random
import sys
from pathlib import Path

DEFAULT = Path(__file__).parents[3] / "shared" / "data" / "packages.csv.gz"
COLUMNS = (
    "id bigint PRIMARY KEY, name text, section text, priority text, size_kb bigint, homepage text,"
    " summary text, description text"
)


def rows() -> list[tuple[int, str, str, str, int | None, str, str, str]]:
    """(id, name, section, priority, size in kB, home page, summary, description); about 425 characters a row."""
    path = Path(os.environ.get("WALVEC_BENCH_ROWS", DEFAULT))
    if path.exists():
        csv.field_size_limit(1 << 24)
        with gzip.open(path, "rt", newline="") as f:
            return [
                (
                    n, r["name"], r["section"], r["priority"],
                    int(r["installed_size_kb"]) if r["installed_size_kb"] else None,
                    r["homepage"], r["summary"], r["description"],
                )
                for n, r in enumerate(csv.DictReader(f), 1)
            ]  # fmt: skip
    print(f"no rows at {path}: 47,603 generated ones instead (set WALVEC_BENCH_ROWS)", file=sys.stderr)
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 10))) for _ in range(20_000)]
    out = []
    for n in range(1, 47_604):
        text = " ".join(rng.choices(words, k=max(3, int(rng.lognormvariate(3.9, 0.6)))))
        out.append(
            (n, words[n % 20_000], rng.choice(words[:50]), "optional", n, "", " ".join(rng.choices(words, k=6)), text)
        )
    return out
