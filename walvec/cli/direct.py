"""Commands that work straight on the control database, without an API: keys and secrets. Whoever may read the settings
and the secret key is the owner here; this is also the way back in.

An embedded server that does not run is started for the command. Next: `definitions.accounts`, `definitions.rotation`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from walvec.cli import render
from walvec.cli.control import open_control, with_embedded
from walvec.contracts.errors import ConfigError, NotFound
from walvec.definitions.model import DEFAULT_ORGANIZATION, ApiKey, Permission, Snapshot
from walvec.definitions.ports import Control
from walvec.definitions.rotation import rotate
from walvec.definitions.secrets import Secrets
from walvec.definitions.tenancy import new_key, shown
from walvec.runtime import config, logging
from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.lock import DataDirectoryLock
from walvec.runtime.secret_files import KeyFile, secret_keys
from walvec.runtime.settings import Settings

T = TypeVar("T")
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file (default: walvec.yaml, when there is one).")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts.")]

keys = typer.Typer(help="API keys, straight in the control database.", no_args_is_help=True)
secrets = typer.Typer(help="What encrypts the stored secrets.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")
    app.add_typer(secrets, name="secrets")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    permission: Annotated[str, typer.Option("--permission", help="full or read_only.")] = "full",
    organization: Annotated[
        str, typer.Option("--organization", help="Name or id of the organization.")
    ] = DEFAULT_ORGANIZATION,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown this once."""
    allowed: dict[str, Permission] = {"full": "full", "read_only": "read_only"}
    if permission not in allowed:
        raise typer.BadParameter("must be full or read_only.", param_hint="--permission")
    if not 1 <= len(name) <= 100:
        raise typer.BadParameter("must have 1 to 100 characters.", param_hint="NAME")

    async def work(control: Control) -> tuple[str, ApiKey]:
        now = await control.definitions.snapshot()
        found = [o for o in now.organizations.values() if organization in (o.id, o.name)]
        if not found:
            raise NotFound(f"there is no organization {organization!r}.")
        token, made = new_key(found[0], name, allowed[permission])
        await control.accounts.create_key(made)
        return token, (await control.definitions.snapshot()).api_keys[made.id]

    token, made = _on_control(file, work)
    typer.echo(render.dump({"key": token, "api_key": shown(made)}) if as_json else token)
    if not as_json:
        typer.echo(f"{made.id}: {made.permission} key {made.name!r}. It is not shown again.", err=True)


@keys.command("list")
def listed(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """All API keys, revoked ones too."""

    async def work(control: Control) -> Snapshot:
        return await control.definitions.snapshot()

    now = _on_control(file, work)
    found = list(now.api_keys.values())
    if as_json:
        typer.echo(render.dump({"data": [shown(k) for k in found]}))
        return
    for k in found:
        state = f"revoked {k.revoked_at}" if k.revoked_at else "in force"
        owner = now.organizations[k.org_id].name
        typer.echo(f"{k.id}  {k.prefix}…  {k.permission:<9}  {owner}  {k.name}  {state}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key.")],
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Take a key's rights away, at once in every process."""

    async def work(control: Control) -> ApiKey:
        await control.accounts.revoke_key(key_id)
        return (await control.definitions.snapshot()).api_keys[key_id]

    found = _on_control(file, work)
    typer.echo(render.dump({"api_key": shown(found)}) if as_json else f"{found.id} is revoked.")


@secrets.command("rotate")
def rotate_secrets(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Encrypt every stored secret anew with another secret key, while roles run. Without WALVEC_SECRET_KEY a new key
    file is made; with it, it is the new key, and WALVEC_SECRET_KEYS_PREVIOUS holds the former one."""
    settings = _settings(file)
    with _reachable(settings) as (found, dsn):
        if found.secret_key is not None and found.secret_key.get_secret_value():
            changed = asyncio.run(_configured(found, dsn))
        else:
            with KeyFile(found.data_dir).rotation() as (former, new):
                changed = asyncio.run(_rotated(found, dsn, Secrets(*former), Secrets(new)))
    typer.echo(render.dump({"rotated": changed}) if as_json else f"{changed} stored secrets have the new key.")


async def _configured(settings: Settings, dsn: str) -> int:
    known = secret_keys(settings)
    if len(known) < 2:
        raise ConfigError(
            "only one secret key is known: there is nothing to change to.",
            "Set WALVEC_SECRET_KEY to the new one and WALVEC_SECRET_KEYS_PREVIOUS to the former one, for this command "
            "and for every process that is to go on.",
        )
    return await _rotated(settings, dsn, Secrets(*known), Secrets(known[0]))


async def _rotated(settings: Settings, dsn: str, old: Secrets, new: Secrets) -> int:
    control = await open_control(settings, old)  # also brings the schema to this version
    await control.close()
    return await rotate(dsn, old, new)


def _settings(file: Path | None) -> Settings:
    settings = config.load_settings(file)
    logging.configure("keys", level="warning", style=settings.log_format)
    return settings


def _on_control(file: Path | None, work: Callable[[Control], Awaitable[T]]) -> T:
    async def run(settings: Settings) -> T:
        control = await open_control(settings)
        try:
            return await work(control)
        finally:
            await control.close()

    with _reachable(_settings(file)) as (found, _):
        return asyncio.run(run(found))


@contextlib.contextmanager
def _reachable(settings: Settings) -> Iterator[tuple[Settings, str]]:
    """The settings with an address that answers, and that address."""
    with contextlib.ExitStack() as stack:
        if settings.control_database.url is None:
            try:
                stack.enter_context(DataDirectoryLock(settings.data_dir))
            except ConfigError:
                pass  # a walvec runs there, and its server with it; if not, that is told next
            else:
                server = EmbeddedPostgres(settings.data_dir)
                if server.running() is None:
                    server.start()
                    stack.callback(server.stop)
            settings = with_embedded(settings)
        assert settings.control_database.url is not None
        yield settings, settings.control_database.url.get_secret_value()
