"""WAL -> `<table>.changes`. Law: knows no embedder, sink or api; confirms to Postgres only what is durable in the log.

A row's way: `replication` (frames) -> `pgoutput` (messages) -> `assembler` (row changes with positions) -> `encoder`
(record bytes) -> `publisher` (log) -> `progress` (what may be confirmed). Beside it `backfill` reads the table.
"""
