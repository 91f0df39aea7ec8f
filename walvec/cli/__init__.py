"""The one program: arguments into a role, a supervisor, a demo, or a question to a running walvec's API.

Law: the top layer; it alone composes roles and adapters, and prints. Exit codes: 0 done, 1 no, 2 usage, 3 no API.
Next: `roles.py`, `supervisor.py`, `commands.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from logging import getLogger
from pathlib import Path
from typing import Annotated

import typer

from walvec import __version__
from walvec.cli.names import EXIT_CONFIG, EXIT_DAMAGED, ROLES
from walvec.contracts.errors import ConfigError, LogDamaged, WalvecError
from walvec.runtime import config, lifecycle, logging
from walvec.runtime.settings import Settings

logger = getLogger(__name__)

app = typer.Typer(
    name="walvec",
    help="Keeps vectors in step with Postgres rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file (default: walvec.yaml, when there is one).")
]


def main() -> None:
    """Console entry. An expected failure is a sentence and its cure on stderr, never a traceback."""
    if len(sys.argv) < 2 or sys.argv[1] not in ROLES:  # a role need not load what asks the API
        from walvec.cli import direct
        from walvec.cli.commands import register

        register(app)
        direct.register(app)
    try:
        app()
    except WalvecError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: WalvecError) -> None:
    """Message and cure on stderr, exit code 1."""
    typer.echo(f"walvec: {logging.redact(error.message)}", err=True)
    if error.cure:
        typer.echo(f"  cure: {logging.redact(error.cure)}", err=True)
    sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"walvec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keeps vectors in step with Postgres rows."""


def start(role: str, file: Path | None) -> Settings:
    """Settings and logging of this process."""
    settings = config.load_settings(file)
    logging.configure(role, level=settings.log_level, style=settings.log_format)
    if role in ("up", "api"):
        from api.access import check_start

        check_start(settings)  # refused before anything is waited for
    if not lifecycle.supervised():
        for name in config.unknown_variables(os.environ):
            logger.warning("no setting has this name", extra={"action": "ignore", "variable": name})
    return settings


def _run_role(role: str, file: Path | None) -> None:
    from walvec.cli import roles

    settings = start(role, file)
    try:
        asyncio.run(lifecycle.run_until_signal(lambda stop: roles.run_role(role, settings, stop)))
    except (ConfigError, LogDamaged) as error:
        if not lifecycle.supervised():
            raise
        typer.echo(f"walvec {role}: {logging.redact(str(error))}", err=True)
        sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_DAMAGED)


@app.command()
def cdc(file: ConfigFile = None) -> None:
    """Role: reads the write-ahead log into the log."""
    _run_role("cdc", file)


@app.command()
def embedder(file: ConfigFile = None) -> None:
    """Role: turns changes into vectors."""
    _run_role("embedder", file)


@app.command()
def sink(file: ConfigFile = None) -> None:
    """Role: writes vectors to the store."""
    _run_role("sink", file)


@app.command()
def api(file: ConfigFile = None) -> None:
    """Role: definitions, tasks, status and search over HTTP."""
    _run_role("api", file)


@app.command()
def up(
    file: ConfigFile = None,
    apply: Annotated[
        list[Path] | None, typer.Option("--apply", help="Definitions file to apply once the API answers; repeatable.")
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="All roles in one process and event loop.")] = False,
    rebackfill: Annotated[
        bool, typer.Option("--rebackfill", help="Read every table again; a damaged local log is set aside first.")
    ] = False,
) -> None:
    """All roles under a supervisor, with the embedded Postgres unless your own is configured."""
    from walvec.cli.supervisor import Supervisor

    settings = start("up", file)
    supervisor = Supervisor(settings, file=file, apply=apply or [], in_process=in_process, rebackfill=rebackfill)
    supervisor.main()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where to work (default: a temporary directory).")
    ] = None,
) -> None:
    """Everything embedded: a table, its vectors, searches, live changes, a kill and a recovery."""
    from walvec.cli.demo import run_demo

    run_demo(keep=keep, data_dir=data_dir)
