"""walvec: vectors that follow the write-ahead log.

The kernel. It imports no role; the roles `cdc`, `embedder`, `sink` and `api` meet only in `walvec.contracts` and on
the log. Layers, top to bottom: `cli` > roles > `definitions` > `transport` > `runtime` > `contracts`.
"""

__version__ = "0.1.0"
