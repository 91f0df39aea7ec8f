"""Our five top-level names are ours alone, and lie in our tree."""

import importlib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["api", "cdc", "embedder", "sink", "walvec"])
def test_a_top_level_name_belongs_to_no_other_distribution(name: str) -> None:
    assert set(metadata.packages_distributions().get(name, [])) <= {"walvec"}
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).is_relative_to(ROOT)
