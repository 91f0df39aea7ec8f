"""Definitions, tasks, dead letters and progress: what the control database holds, and a live view of it.

`model` is pure; `ports` is what the roles use; `postgres` keeps it, `memory` for tests; `feed` follows it; `document`
reads YAML.
"""
