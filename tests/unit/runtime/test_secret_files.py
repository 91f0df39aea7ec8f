"""The generated secret: made once, private, and the same for whoever asks."""

import threading
from itertools import count
from pathlib import Path

from walvec.runtime.secret_files import KeyFile, private_file, secret_keys
from walvec.runtime.settings import settings_from


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    settings = settings_from({"data_dir": tmp_path / "new", "secret_key": None})
    (first,) = secret_keys(settings)
    assert len(first) >= 32
    assert secret_keys(settings) == [first]
    assert (tmp_path / "new" / "secret.key").stat().st_mode & 0o777 == 0o600


def test_a_configured_key_is_taken_as_it_is(tmp_path: Path) -> None:
    assert secret_keys(settings_from({"data_dir": tmp_path, "secret_key": "any string"})) == ["any string"]
    several = {"data_dir": tmp_path, "secret_key": "now", "secret_keys_previous": "before, long before"}
    assert secret_keys(settings_from(several)) == ["now", "before", "long before"]
    assert not (tmp_path / "secret.key").exists()


def test_a_rotation_that_breaks_off_leaves_both_keys_in_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    (old,) = file.keys()
    broken = file.rotation()
    former, new = broken.__enter__()
    assert former == [old]
    assert file.keys() == [old, new]
    stop = RuntimeError("the machine stops here")
    assert not broken.__exit__(RuntimeError, stop, None)
    assert file.keys() == [old, new]
    with file.rotation() as (former, newest):
        assert former == [old, new]
    assert file.keys() == [newest]
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".secret.key*")) == []


def test_an_empty_file_left_by_a_crash_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    assert private_file(tmp_path / "key", lambda: "made") == "made"


def test_those_who_race_get_the_same(tmp_path: Path) -> None:
    numbers = count()
    found: set[str] = set()
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        found.add(private_file(tmp_path / "key", lambda: str(next(numbers))))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
