"""Answers of the API as a person reads them. Pure but for the console; scripts use --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from walvec.contracts.position import Position

_STATES = {
    "synced": "green",
    "backfilling": "cyan",
    "pending": "yellow",
    "paused": "yellow",
    "pending_rebackfill": "yellow",
    "blocked": "red",
    "error": "red",
}
_EXCERPT = 200
_ACTIONS = {"created": "green", "changed": "yellow", "removed": "red", "unchanged": "dim"}


def console() -> Console:
    """Standard output; a pipe is not cut at 80 columns."""
    return Console() if sys.stdout.isatty() else Console(width=200, soft_wrap=True)


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def key_text(key: Any) -> str:
    """A single key column by its value, a composite key as JSON."""
    if isinstance(key, Mapping) and len(key) == 1:
        return str(next(iter(key.values())))
    return "?" if key is None else json.dumps(key, ensure_ascii=False)


def number(value: Any) -> str:
    return "?" if value is None else f"{value:,}"


def seconds(value: Any) -> str:
    if value is None:
        return "?"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


def size(value: int) -> str:
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def statuses(tables: Sequence[Mapping[str, Any]], removals: Sequence[Mapping[str, Any]] = ()) -> RenderableType:
    left = [removal(r) for r in removals]
    if not tables:
        return Group(Text("no vector tables yet; `walvec apply -f FILE` makes some", style="dim"), *left)
    out = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("table", "state", "rows", "in store", "lag", "behind", "dead", "texts sent", "saved"):
        out.add_column(head, justify="left" if head in ("table", "state") else "right")
    for t in tables:
        out.add_row(
            escape(t["name"]),
            f"[{_STATES.get(t['state'], 'white')}]{t['state']}[/]",
            number(t["total_rows"]),
            number(t["synced_rows"]),
            number(t["lag_changes"]),
            seconds(t["lag_seconds"]),
            f"[red]{t['dead_letters']}[/]" if t["dead_letters"] else "0",
            number(t.get("texts_sent")),
            number(t.get("texts_saved")),
        )
    parts: list[RenderableType] = [out]
    parts += [backfill(t["name"], t["backfill"]) for t in tables if t.get("backfill")]
    parts += [Text(f"{t['name']}: {t['last_error']}", style="red") for t in tables if t.get("last_error")]
    for t in tables:
        parts += [Text(f"{t['name']}: cannot be reached now: {what}", style="yellow") for what in t["unreachable"]]
    return Group(*parts, *left)


def removal(task: Mapping[str, Any]) -> RenderableType:
    """What a deleted definition has left behind."""
    what, name = task["progress"]["what"], task["progress"]["name"]
    error = f": {task['last_error']}" if task.get("last_error") else ""
    return Text(f"still to be removed: {what} of {name}{error}", style="yellow")


def details(table: Mapping[str, Any]) -> RenderableType:
    """One table, stage by stage."""
    source = table["source"]
    out = Table(box=None, show_header=False, pad_edge=False)
    out.add_column(style="dim")
    out.add_column()
    reading = "reading" if source.get("reading") else "not reading"
    out.add_row(
        "source",
        escape(
            f"{source.get('connection')}: {source.get('status')}, {reading}, read up to "
            f"{source.get('durable_lsn')} {source.get('status_message') or ''}"
        ),
    )
    for stage, name in (("embedder", "to embed"), ("sink", "to store")):
        lag = table["stages"].get(stage)
        out.add_row(name, f"{number(lag['lag_changes'])} records, {seconds(lag['lag_seconds'])}" if lag else "?")
    out.add_row("model", escape(f"{table['embedding_model']} in {table['store']}, generation {table['generation']}"))
    return Group(statuses([table]), out)


def backfill(name: str, progress: Mapping[str, Any]) -> RenderableType:
    """One line: bar, rows, rate, time left."""
    done, total = progress["rows_done"], progress["estimated_total"]
    grid = Table.grid(padding=(0, 1))
    rate = f"{progress['rate']:,.0f} rows/s" if progress.get("rate") else ""
    left = progress.get("remaining_seconds")
    grid.add_row(
        escape(f"{name} {progress['task_type']}"),
        ProgressBar(total=total or None, completed=done, width=30, pulse=not total),
        f"{number(done)} of about {number(total)} rows",
        rate,
        f"{seconds(left)} left" if left is not None else "",
        escape(progress.get("waiting") or ""),
    )
    return grid


def differences(found: Sequence[Mapping[str, Any]], *, dry_run: bool) -> RenderableType:
    if not found:
        return Text("the file names nothing", style="yellow")
    lines: list[RenderableType] = []
    for d in found:
        action = {"created": "create", "changed": "change", "removed": "remove"}.get(d["action"], d["action"])
        word = f"would {action}" if dry_run and d["action"] != "unchanged" else d["action"]
        lines.append(Text(f"{word} {d['kind'].replace('_', ' ')} {d['name']}", style=_ACTIONS[d["action"]]))
        for name, change in d["fields"].items():
            shown = change if isinstance(change, str) else f"{change['before']!r} -> {change['after']!r}"
            lines.append(Text(f"  {name}: {shown}"))
    return Group(*lines)


def hits(results: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not results:
        return Text("nothing found", style="dim")
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("score", justify="right")
    for head in ("id", "text", "metadata"):
        out.add_column(head)
    for r in results:
        text = " ".join((r["embedded_text"] or "").split())
        metadata = ", ".join(f"{k}={v}" for k, v in r["metadata"].items())
        out.add_row(f"{r['score']:.3f}", escape(r["id"]), escape(cut(text, 80)), escape(cut(metadata, 80)))
    return out


def verification(found: Mapping[str, Sequence[Any]], table: str) -> RenderableType:
    if not any(found.values()):
        return Text(f"{table}: source and store are equal", style="green")
    lines: list[RenderableType] = []
    for kind, keys in found.items():
        if keys:
            some = ", ".join(key_text(k) for k in keys[:10]) + (", …" if len(keys) > 10 else "")
            lines.append(Text(f"{len(keys)} {kind}: {some}", style="red"))
    return Group(*lines)


def letters(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("no dead letters", style="green")
    out = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("id", "key", "kind", "attempts", "position", "reason"):
        out.add_column(head)
    for v in found:
        reason = escape(" ".join(v["reason"].split()))
        out.add_row(str(v["id"]), escape(key_text(v["key"])), v["kind"], str(v["attempts"]), v["position"], reason)
    return out


def topics(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("no topics yet", style="dim")
    out = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("topic", "vector table", "partitions", "records", "lag", "behind", "size", "oldest"):
        out.add_column(head, justify="left" if head in ("topic", "vector table", "oldest") else "right")
    for t in found:
        lag = ("", "") if t["lag"] is None else (number(t["lag"]), seconds(t["lag_seconds"]))
        row = (str(t["partitions"]), number(t["records"]), *lag, size(t["bytes"]), t["oldest"] or "")
        out.add_row(escape(t["topic"]), escape(t["vector_table"] or ""), *row)
    parts: list[RenderableType] = [out]
    parts += [Text(f"{t['topic']}: {what}", style="yellow") for t in found for what in t["differences"]]
    return Group(*parts)


def record(found: Mapping[str, Any], *, headers: bool = False) -> str:
    """A record of the log: time, partition:offset, op, key, position, then the text or the reason; all other values
    are in --json."""
    at = datetime.fromtimestamp(found["timestamp_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    value = found["value"]
    line = f"{at} {found['partition']}:{found['offset']} "
    if not isinstance(value, dict):
        return line + f"{'?':<8} {key_text(found['key'])} {cut(_line(value), _EXCERPT)}"
    own = value.get("walvec")
    block: Mapping[str, Any] = own if isinstance(own, dict) else value
    marks = [f"generation {block['generation']}"] if block.get("generation") else []
    marks += ["forced"] if block.get("force") else []
    marks += [f"unchanged {', '.join(map(str, block['unchanged']))}"] if block.get("unchanged") else []
    shown = f" ({'; '.join(marks)})" if marks else ""
    line += f"{_line(value.get('op', value.get('kind', '?'))):<8} {key_text(found['key'])} {_position(block)}{shown}"
    line = f"{line} {cut(_line(_excerpt(value, block)), _EXCERPT)}".rstrip()
    if headers:
        line += "".join(f"\n    {name}: {text}" for name, text in found["headers"].items())
    return line


def _position(block: Mapping[str, Any]) -> str:
    found = block.get("position")
    if isinstance(found, list) and len(found) == 3 and all(isinstance(n, int) for n in found):
        return str(Position(*found))
    return "?"


def _excerpt(value: Mapping[str, Any], block: Mapping[str, Any]) -> Any:
    """What a person looks for first: the text, the row, the reason."""
    if "reason" in value:
        return f"{value.get('attempts')} attempts: {value['reason']}"
    if block.get("text") is not None:
        return block["text"]
    chunks = value.get("chunks")
    if isinstance(chunks, list):
        return " | ".join(str(c.get("text")) for c in chunks if isinstance(c, dict))
    for row in (value.get("after"), value.get("before")):
        if isinstance(row, dict):
            return ", ".join(f"{name}={_plain(v)}" for name, v in row.items())
    return "" if "position" in block else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(value: Any) -> str:
    """One line; what would steer a terminal is shown, not sent."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(_plain(value).split()))


def replayed(table: str, found: Mapping[str, Any]) -> str:
    if not found["replayed"]:
        return f"{table}: the log keeps no changes from there on"
    return (
        f"{table}: {number(found['replayed'])} records appended again, the oldest of {found['oldest']}; "
        f"`walvec drain {table}` waits until they are worked off"
    )


@contextmanager
def counting(title: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard output while it is open; call with (done, of)."""
    if not shown:
        yield lambda done, of: None
        return
    with Progress(TextColumn(title), BarColumn(), MofNCompleteColumn(), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def checks(found: Mapping[str, Any]) -> RenderableType:
    lines: list[RenderableType] = [Text(f"connection {found['connection']}", style="bold")]
    for c in found["checks"]:
        lines.append(
            Text(f"  {'ok  ' if c['ok'] else 'FAIL'} {c['name']}: {c['detail']}", style="" if c["ok"] else "red")
        )
        if not c["ok"] and c["cure"]:
            lines.append(Text(f"       mend it with: {c['cure']}", style="yellow"))
    return Group(*lines)


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
