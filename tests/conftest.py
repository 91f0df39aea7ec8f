"""Fixtures by concern, in tests/plugins."""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

pytest_plugins = [
    "tests.plugins.postgres",
    "tests.plugins.postgres15",
    "tests.plugins.eventually",
    "tests.plugins.openai_server",
    "tests.plugins.kafka",
    "tests.plugins.connect",
    "tests.plugins.side_by_side",
]
