"""The control database as plain objects in this process: the fake that tests of the roles use.

`feed` holds the definitions, the other modules what belongs to them; `control` puts them together. Each stands for the
module of its name in `walvec.definitions`, and decides by the same pure functions (`transitions`, `generations`,
`steps`); all are held to one contract suite (tests/contract/test_control.py). Everything is lost with the process.
"""

from walvec.definitions.memory.control import MemoryControl

__all__ = ["MemoryControl"]
