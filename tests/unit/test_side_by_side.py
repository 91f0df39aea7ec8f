"""The list of long tests names tests that there are."""

import re
from pathlib import Path

import pytest

from tests.plugins.side_by_side import SECONDS, seconds, unit

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", SECONDS)
def test_what_is_weighed_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert re.search(rf"^(async )?def {test or 'test_'}", (ROOT / file).read_text(), re.MULTILINE)


def test_a_weighed_test_is_on_its_own_and_a_file_is_whole() -> None:
    name = next(name for name in SECONDS if "::" in name)
    assert unit(f"{name}[consumer]") == f"{name}[consumer]"
    assert seconds(f"{name}[consumer]") == SECONDS[name]
    file = name.partition("::")[0]
    assert unit(f"{file}::test_another[a::b]") == file
    assert unit("tests/unit/test_side_by_side.py::test_x[a::b]") == "tests/unit/test_side_by_side.py"
