"""`<table>.vectors` -> the store. Law: applies only what is newer; commits its offset only after the store is durable.

A record's way: `worker` (takes a batch) -> `coalescer` (newest position per key) -> `stores` (guarded write).
"""
