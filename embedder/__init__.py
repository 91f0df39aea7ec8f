"""`<table>.changes` -> `<table>.vectors`. Law: stateless; all it knows is in the log, the control database, the store.

A record's way: `worker` (takes a batch) -> `coalescer` (one change per key) -> `planner` (what each needs) -> `packing`
(requests) -> `providers` -> `worker` (emits, then commits).
"""
