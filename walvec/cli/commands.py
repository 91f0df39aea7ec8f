"""Commands that ask a running walvec. Exit codes: 0 done, 1 the command's own "no", 2 usage, 3 API not reached.

With --json: JSON alone on stdout, an error as the API's envelope; all else goes to stderr. Next: `client`, `render`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from threading import Event
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import RenderableType
from rich.live import Live

from walvec.cli import render
from walvec.cli.client import Client, Refused, Unreachable, given
from walvec.contracts.errors import ConfigError, WalvecError
from walvec.definitions import document
from walvec.runtime.logging import redact

Url = Annotated[
    str | None, typer.Option("--url", help="Address of the API (default: WALVEC_URL, else http://127.0.0.1:8080).")
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="API key (default: WALVEC_API_KEY).")]
EnvironmentName = Annotated[
    str | None,
    typer.Option("--environment", help="Environment to work in, by id or name (default: WALVEC_ENVIRONMENT)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts.")]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="Name or id of a vector table.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]
Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Ids of letters (default: all).")]

dead = typer.Typer(help="Dead letters: changes that could not be processed.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds all commands of this module."""
    asked: list[Callable[..., None]] = [
        apply, export, status, backfill, pause, resume, search, drain, verify, topics, tail, replay, doctor,
    ]  # fmt: skip
    for command in asked:
        app.command()(identified(command))
    letters: dict[str, Callable[..., None]] = {
        "list": dead_list,
        "show": dead_show,
        "replay": dead_replay,
        "drop": dead_drop,
    }
    if not dead.registered_commands:
        for name, command in letters.items():
            dead.command(name)(identified(command))
    app.add_typer(dead, name="dead")


def identified(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the two options that every question to the API has."""

    @wraps(command)
    def asked(*arguments: Any, api_key: str | None, environment: str | None, **options: Any) -> None:
        given.api_key, given.environment = api_key, environment
        command(*arguments, **options)

    own = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("api_key", ApiKey), ("environment", EnvironmentName))
    ]
    asked.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    asked.__annotations__ = {p.name: p.annotation for p in [*own.parameters.values(), *more]}
    return asked


def apply(
    file: Annotated[list[str], typer.Option("--file", "-f", help="Definitions file (YAML), - for stdin; repeatable.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the difference.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what the files do not name.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Register connections, providers and vector tables; idempotent, prints the difference."""
    with _answering(as_json, url) as client:
        body = {"document": read_documents(file), "dry_run": dry_run, "prune": prune}
        found = client.post("/v1/apply", body, timeout=600)
        _show(found, lambda: render.differences(found["differences"], dry_run=dry_run), as_json)
        if not as_json and not dry_run and sys.stdout.isatty():
            _follow_backfills(client, [d["name"] for d in found["differences"] if d["kind"] == "vector_table"])


def export(
    out: Annotated[Path | None, typer.Option("--output", "-o", help="File to write (default: stdout).")] = None,
    placeholders: Annotated[
        bool, typer.Option("--placeholders", help="Write ${NAME} where a password or an API key is stored.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write all definitions as the file that apply reads; secrets are left out, and stay as they are stored."""
    with _answering(as_json, url) as client:
        wanted = "json" if as_json else "yaml"
        text = client.text("/v1/export", format=wanted, placeholders=str(placeholders).lower())
        if out is None:
            typer.echo(text, nl=not text.endswith("\n"))
            return
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"{out} cannot be written: {e.strerror}.", "Check the path and its rights.") from e


def read_documents(files: list[str]) -> dict[str, Any]:
    """All files as one document, variables expanded. Raises ConfigError."""
    merged: dict[str, list[Any]] = {}
    for name in files:
        found = document.loads(sys.stdin.read(), "standard input") if name == "-" else document.load(Path(name))
        for part, values in found.wire().items():
            merged.setdefault(part, []).extend(values)
    return document.parse(merged, ", ".join(files)).wire()


def status(
    table: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="One table in detail.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second, until Ctrl-C.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Per table: state, rows, lag in changes and seconds, dead letters, last error."""
    with _answering(as_json, url) as client:
        path = "/v1/status" + (f"/{_part(table)}" if table else "")

        def draw(found: Any) -> RenderableType:
            return (
                render.details(found["tables"][0])
                if table
                else render.statuses(found["tables"], found.get("removals", []))
            )

        found = client.get(path)
        if not watch:
            _show(found, lambda: draw(found), as_json)
        elif as_json:
            while True:
                typer.echo(json.dumps(found, ensure_ascii=False))
                Event().wait(1)
                found = client.get(path)
        else:
            with Live(draw(found), console=render.console(), auto_refresh=False) as live:
                while True:
                    Event().wait(1)
                    live.update(draw(client.ask("GET", path, patience=60)), refresh=True)


def backfill(
    table: TableName,
    sweep: Annotated[
        bool | None,
        typer.Option("--sweep/--no-sweep", help="Delete what the source lacks (default: unless it is the first)."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Read the source table anew; equal texts cost nothing. Returns at once."""
    with _answering(as_json, url) as client:
        found = client.post(f"{_table(table)}/backfill", {"sweep": sweep})
        _show(found, lambda: f"backfill of {table} asked for: {found['task_id']}", as_json)
        if not as_json and sys.stdout.isatty():
            _follow_backfills(client, [table])


def pause(table: TableName, url: Url = None, as_json: AsJson = False) -> None:
    """Collect changes without applying them."""
    _sync(table, "pause", url, as_json)


def resume(table: TableName, url: Url = None, as_json: AsJson = False) -> None:
    """Go on after a pause, or after an error that has been mended."""
    _sync(table, "resume", url, as_json)


def _sync(table: str, verb: str, url: str | None, as_json: bool) -> None:
    with _answering(as_json, url) as client:
        found = client.post(f"{_table(table)}/sync/{verb}")
        _show(found, lambda: f"{table}: {found['message']} (now {found['sync_status']})", as_json)


def search(
    table: TableName,
    text: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=100)] = 10,
    where: Annotated[
        str | None, typer.Option("--filter", metavar="JSON", help='For example \'{"price": {"lte": 150}}\'.')
    ] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", min=0, max=1)] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Rows whose text is nearest in meaning."""
    filters = _filters(where)
    with _answering(as_json, url) as client:
        body = {"query": text, "limit": limit, "filters": filters, "min_similarity_score": min_score}
        found = client.post(f"{_table(table)}/query", body)
        _show(found, lambda: render.hits(found["results"]), as_json)


def _filters(where: str | None) -> Any:
    if where is None:
        return None
    try:
        found = json.loads(where)
    except ValueError as e:
        raise typer.BadParameter(f"not JSON: {e}", param_hint="--filter") from e
    if not isinstance(found, dict):
        raise typer.BadParameter("must be a JSON object", param_hint="--filter")
    return found


def drain(
    tables: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]...", help="Default: all.")] = None,
    timeout: Timeout = 300,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Wait until everything committed at the source before now is in the store; 1 and the reason otherwise."""
    with _answering(as_json, url) as client:
        found = client.wait("/v1/drain", {"tables": tables or None}, timeout=timeout)
        _show(found, lambda: _drained(found), as_json)
        if not found["drained"]:
            _no(f"not drained: {found['reason']}")


def _drained(found: Any) -> str:
    lines = [f"drained {', '.join(found['tables']) or 'nothing: no vector tables'}"] if found["drained"] else []
    lines += [f"{name}: {n} dead letters (walvec dead list {name})" for name, n in found["dead_letters"].items()]
    return "\n".join(lines)


def verify(
    table: TableName,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs, then compare again.")] = False,
    timeout: Timeout = 300,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare source and store by key and text hash; 1 when they differ."""
    with _answering(as_json, url) as client:
        found = client.wait(f"{_table(table)}/verify", {"repair": repair}, timeout=timeout)
        _show(found, lambda: render.verification(found, table), as_json)
        if any(found.values()):
            raise typer.Exit(1)


def dead_list(table: TableName, url: Url = None, as_json: AsJson = False) -> None:
    """Key, kind, reason and attempts of each."""
    with _answering(as_json, url) as client:
        letters, cursor = list[Any](), None
        while True:
            page = client.get(f"{_table(table)}/dead-letters", limit=100, cursor=cursor)
            letters += page["dead_letters"]
            cursor = page["pagination"]["next_cursor"]
            if cursor is None:
                break
        _show({"dead_letters": letters}, lambda: render.letters(letters), as_json)


def dead_show(
    table: TableName, letter: Annotated[int, typer.Argument(metavar="ID")], url: Url = None, as_json: AsJson = False
) -> None:
    """One letter with the record it came from."""
    with _answering(as_json, url) as client:
        found = client.get(f"{_table(table)}/dead-letters/{letter}")
        _show(found, lambda: render.dump(found), as_json)


def dead_replay(table: TableName, ids: Ids = None, url: Url = None, as_json: AsJson = False) -> None:
    """Read the rows again and process them anew."""
    with _answering(as_json, url) as client:
        found = client.post(f"{_table(table)}/dead-letters/replay", {"ids": ids or None})
        _show(found, lambda: f"{found['replayed']} letters of {table} are replayed", as_json)


def dead_drop(table: TableName, ids: Ids = None, url: Url = None, as_json: AsJson = False) -> None:
    """Forget letters; their rows stay out of the store until they change."""
    with _answering(as_json, url) as client:
        found = client.ask("DELETE", f"{_table(table)}/dead-letters", params={"ids": ids} if ids else None)
        _show(found, lambda: f"{found['dropped']} letters of {table} dropped", as_json)


def topics(url: Url = None, as_json: AsJson = False) -> None:
    """The log: topics, partitions, records, lag in changes and seconds, size, oldest record, settings that differ."""
    with _answering(as_json, url) as client:
        found = client.get("/v1/topics")
        _show(found, lambda: render.topics(found["topics"]), as_json)


def tail(
    table: TableName,
    topic: Annotated[str, typer.Argument(metavar="changes|vectors|dead")] = "changes",
    start: Annotated[
        str | None, typer.Option("--from", help="earliest, latest, an age like 10m, or an offset.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    key: Annotated[str | None, typer.Option("--key", help="Only this key: its value, or its JSON object.")] = None,
    partition: Annotated[int | None, typer.Option("--partition", min=0, help="Only this partition.")] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Headers too, under each record.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Records of the log, readable; with --json whole, one object per line."""
    if topic not in ("changes", "vectors", "dead"):
        raise typer.BadParameter("is one of changes, vectors, dead", param_hint="TOPIC")
    params: dict[str, Any] = {"topic": topic, "from": start, "follow": follow, "key": key, "partition": partition}
    with _answering(as_json, url) as client, client.lines(f"{_table(table)}/tail", **params) as records:
        for record in records:
            typer.echo(json.dumps(record, ensure_ascii=False) if as_json else render.record(record, headers=headers))


def replay(
    table: TableName,
    start: Annotated[str, typer.Option("--from", help="earliest, an age like 10m, or an offset.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Append the changes that the log keeps from a place on once more; what the store has already is left alone."""
    done: dict[str, Any] = {}
    with (
        _answering(as_json, url) as client,
        client.lines(f"{_table(table)}/replay", method="POST", body={"from": start}) as lines,
        render.counting(f"replaying {table}", shown=not as_json and sys.stdout.isatty()) as count,
    ):
        for done in lines:
            count(done["replayed"], done["of"])
        if not done.get("done"):
            raise Unreachable("the API ended before the replay did.", "Ask again: what was replayed twice is harmless.")
    _show(done, lambda: render.replayed(table, done), as_json)


def doctor(
    connection: Annotated[str | None, typer.Argument(metavar="[CONNECTION]", help="Default: all.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """The preflight of a source; each failure with the statement that mends it."""
    with _answering(as_json, url) as client:
        names = [connection] if connection else _connections(client)
        found = [client.get(f"/v1/connections/{_part(name)}/doctor") for name in names]
        if as_json:
            typer.echo(render.dump({"ok": all(f["ok"] for f in found), "connections": found}))
        else:
            out = render.console()
            for one in found:
                out.print(render.checks(one))
            if not found:
                out.print("no connections yet")
        if not all(f["ok"] for f in found):
            raise typer.Exit(1)


def _connections(client: Client) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/connections", limit=100, cursor=cursor)
        found += [c["id"] for c in page["data"]]
        cursor = page["pagination"]["next_cursor"]
        if cursor is None:
            return found


@contextmanager
def _answering(as_json: bool, url: str | None) -> Iterator[Client]:
    """Failures as exit codes and, for scripts, as JSON."""
    try:
        with closing(Client(url)) as client:
            yield client
    except Unreachable as e:
        _fail(e, {"error": {"code": "unreachable", "message": e.message, "resolution": e.cure}}, as_json, 3)
    except Refused as e:
        _fail(e, dict(e.body), as_json, 1)
    except ConfigError as e:
        _fail(e, {"error": {"code": "config", "message": e.message, "resolution": e.cure}}, as_json, 1)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _fail(error: WalvecError, envelope: dict[str, Any], as_json: bool, code: int) -> None:
    if as_json:
        typer.echo(render.dump(envelope))
    typer.echo(f"walvec: {redact(error.message)}", err=True)
    if error.cure:
        typer.echo(f"  cure: {redact(error.cure)}", err=True)
    raise typer.Exit(code) from error


def _no(message: str) -> None:
    typer.echo(f"walvec: {message}", err=True)
    raise typer.Exit(1)


def _show(found: Any, draw: Callable[[], RenderableType], as_json: bool) -> None:
    if as_json:
        typer.echo(render.dump(found))
        return
    drawn = draw()
    if drawn != "":
        render.console().print(drawn, markup=False) if isinstance(drawn, str) else render.console().print(drawn)


def _follow_backfills(client: Client, names: list[str]) -> None:
    """Bars on a terminal until the backfills are done; Ctrl-C leaves them running."""
    if not names:
        return
    with Live(console=render.console(), auto_refresh=False, transient=True) as live:
        while True:
            tables = [client.get(f"/v1/status/{_part(n)}")["tables"][0] for n in names]
            if not any(t["state"] == "backfilling" for t in tables):
                break
            live.update(render.statuses(tables), refresh=True)
            Event().wait(0.5)
    render.console().print(render.statuses(tables))


def _table(name: str) -> str:
    return f"/v1/vector-tables/{_part(name)}"


def _part(name: str) -> str:
    return quote(name, safe="")
