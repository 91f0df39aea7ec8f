"""docs/api.md, block by block: real curl against a real `walvec up` gives the statuses and the answers that it shows.

A block ```sh is run by bash (one that begins with export holds for all after it), a block ```sql by the source. A block
```json STATUS is the answer of the curl before it: ids stand for those of the run from where they first appear, times,
LSNs and measured numbers for their like, and a key `…` for fields that are left out. Whatever only reads is asked until
the page is right: that is how one waits.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg.conninfo import conninfo_to_dict

from api.codes import CODES
from tests.acceptance.harness import Walvec, wait_until
from tests.plugins.openapi import Contract
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
KEY = "sk_live_of_the_docs"
BLOCK = re.compile(r"^```(sh|sql|json)(?: (\d{3}))?\n(.*?)^```$", re.M | re.S)
ID = re.compile(r"\b(?:conn|emb|vt|task|key|env|org)_[0-9a-f]{16}\b")
PATTERNS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)"), "<time>"),
    (re.compile(r"\breq_[0-9a-f]{16}\b"), "<request>"),
    (re.compile(r"\bsk_live_[A-Za-z0-9_-]+"), "<key>"),
    (re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b"), "<lsn>"),
    (re.compile(r"\b(?:walvec|vt)_[0-9a-f]{8}(?![0-9a-f])"), "<storage>"),
)
MEASURED = {
    "latency_ms", "seconds", "score", "similarity_score", "staleness_secs", "lag_seconds", "next_cursor", "rate",
    "progress", "cursor", "port", "durable_lsn",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    kind: str
    text: str
    status: int | None = None
    answer: Any = None


def steps(page: str) -> list[Step]:
    """Blocks in their order, each curl with the answer that follows it."""
    found: list[Step] = []
    for kind, status, text in BLOCK.findall(page):
        if kind == "json":
            assert found, "an answer without a request"
            assert found[-1].kind == "sh", f"an answer without a request: {text}"
            found[-1] = Step("sh", found[-1].text, int(status or 200), json.loads(text))
        else:
            found.append(Step(kind, text))
    return found


class Reader:
    """Who follows the page."""

    def __init__(self, walvec: Walvec, source: PostgresDatabase, directory: Path) -> None:
        self.walvec, self.source, self.headers = walvec, source, directory / "headers"
        self.ids: dict[str, str] = {}
        place = conninfo_to_dict(source.dsn)
        self.words = {
            '"host": "db.example.com"': f'"host": "{place["host"]}"',
            '"port": 5432': f'"port": {place["port"]}',
            '"database": "shop"': f'"database": "{place["dbname"]}"',
            '"user": "walvec"': f'"user": "{place["user"]}"',
            '"password": "secret"': f'"password": "{place["password"]}"',
            "http://127.0.0.1:8080": walvec.url,
            "sk_live_…": KEY,
        }
        self.database = str(place["dbname"])
        self.prelude = 'curl() { command curl -sS -D "$HEADERS" "$@"; }\n'
        self.contract = Contract(httpx.get(f"{walvec.url}/openapi.json").json())
        self.env = {**os.environ, "HEADERS": str(self.headers)}

    def run(self, step: Step) -> tuple[int, Any]:
        text = self.prelude + ID.sub(lambda m: self.ids.get(m[0], m[0]), self.filled(step.text))
        done = subprocess.run(
            ["bash", "-ec", text], env=self.env, capture_output=True, text=True, check=False, timeout=90
        )
        assert done.returncode == 0, f"{step.text}\n{done.stdout}{done.stderr}"
        told = self.headers.read_text()
        status = int(re.findall(r"^HTTP/\S+ (\d+)", told, re.M)[-1])
        answer = json.loads(done.stdout) if done.stdout.strip() else None
        method = next(iter(re.findall(r"-X (\w+)", text)), "GET")
        *_, path = re.findall(r"\$WALVEC(/[^\s\"]+)", text)
        self.contract.check(method, path, status, re.findall(r"^([\w-]+):", told, re.M), answer)
        return status, answer

    def filled(self, text: str) -> str:
        for shown, real in self.words.items():
            text = text.replace(shown, real)
        return text

    def follow(self, step: Step) -> None:
        if step.kind == "sql":
            self.source.execute(step.text)
            return
        if step.text.startswith("export "):
            self.prelude += self.filled(step.text)
            return

        def asked() -> bool:
            before = dict(self.ids)
            status, answer = self.run(step)
            try:
                assert step.status is None or status == step.status, (
                    f"{step.text}\n{status}, not {step.status}: {answer}"
                )
                assert step.status is not None or status < 300, f"{step.text}\n{status}: {answer}"
                if step.status is not None and step.answer is not None:
                    self.same(step.answer, answer, step.text)
            except AssertionError:
                self.ids = before
                raise
            return True

        reads = "-X" not in step.text and (" -d" not in step.text or "/query" in step.text)
        if reads:
            wait_until(asked, timeout=60, what=step.text)
        else:
            asked()

    def same(self, shown: Any, real: Any, where: str, field: str = "") -> None:
        place = f"{where}\n{field}"
        if isinstance(shown, dict):
            assert isinstance(real, dict), f"{place}: {real!r}"
            whole = "…" not in shown
            missing = [k for k in shown if k not in real and k != "…"]
            assert not missing, f"{place}: the answer has no {missing}: {real}"
            unknown = [k for k in real if k not in shown]
            assert not (whole and unknown), f"{place}: the page has no {unknown}"
            for name, value in shown.items():
                if name != "…":
                    self.same(value, real[name], where, name)
        elif isinstance(shown, list):
            assert isinstance(real, list), f"{place}: {real!r}"
            if "…" in shown:
                shown = shown[: shown.index("…")]
                real = real[: len(shown)]
            assert len(shown) == len(real), f"{place}: {real!r}"
            for one, other in zip(shown, real, strict=True):
                self.same(one, other, where, field)
        elif isinstance(shown, str) and isinstance(real, str):
            if ID.fullmatch(shown):
                known = self.ids.setdefault(shown, real)
                assert known == real, f"{place}: {real} is not {known}"
            elif field not in MEASURED:
                assert self.plain(shown) == self.plain(real), place
        elif field in MEASURED:
            assert (shown is None) == (real is None) or field in ("lag_seconds", "staleness_secs"), f"{place}: {real!r}"
        else:
            assert shown == real, f"{place}: {real!r}, not {shown!r}"

    def plain(self, text: str) -> str:
        text = text.replace(self.database, "shop").replace("as postgres", "as walvec")
        text = ID.sub(lambda m: self.ids.get(m[0], m[0]), text)
        for pattern, stands_for in PATTERNS:
            text = pattern.sub(stands_for, text)
        return text


@pytest.fixture
def reader(tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Reader]:
    own = postgres.another()
    walvec = Walvec(tmp_path, control=own, store=own, env={"WALVEC_API__KEYS": KEY})
    walvec.start()
    yield Reader(walvec, postgres, tmp_path)
    walvec.stop()


def test_the_page_says_what_happens(reader: Reader) -> None:
    found = steps(PAGE.read_text())
    assert sum(step.status is not None for step in found) > 30
    for step in found:
        reader.follow(step)


def test_every_code_stands_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (.+) \|$", PAGE.read_text(), re.M)
    assert rows == [(name, str(code.status), code.means) for name, code in CODES.items()]


def test_a_page_that_is_wrong_is_noticed() -> None:
    same = Reader.__new__(Reader)
    same.ids, same.database = {}, "t_0"
    shown = {"id": "vt_0000000000000001", "at": "2026-01-01T00:00:00Z", "rows": 3, "…": 0}
    same.same(shown, {"id": "vt_00000000000000aa", "at": "2027-01-01T00:00:00.5Z", "rows": 3, "more": 1}, "")
    assert same.ids == {"vt_0000000000000001": "vt_00000000000000aa"}
    for real in (
        {"id": "vt_00000000000000bb", "at": "2027-01-01T00:00:00Z", "rows": 3},
        {"id": "vt_00000000000000aa", "at": "today", "rows": 3},
        {"id": "vt_00000000000000aa", "at": "2027-01-01T00:00:00Z", "rows": 4},
        {"id": "vt_00000000000000aa", "at": "2027-01-01T00:00:00Z"},
    ):
        with pytest.raises(AssertionError):
            same.same(shown, real, "")
    with pytest.raises(AssertionError):
        same.same({"rows": 3}, {"rows": 3, "more": 1}, "")
