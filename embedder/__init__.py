"""`<table>.changes` -> `<table>.vectors`. Law: stateless; all it knows is in the log, the control database, the store.

A record's way: `worker` (polls) -> `intake` (decodes) -> `lanes` (one per generation) -> `batch`: `coalescer` (one
change per key) -> `planner` (what each needs) -> `packing` (requests) -> `providers` -> `outbox` -> `worker` (commits).
"""
