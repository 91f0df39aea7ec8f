"""Organizations that are being deleted: what they hold goes as if it were deleted piece by piece, then they go.

Durable: an organization stays marked until nothing of it is left, and whichever API process is there goes on with it.
Next: `removals`, which takes away what the definitions leave behind.
"""

from __future__ import annotations

import asyncio
import logging

from api.removals import Remover, remove_connection, remove_vector_table
from walvec.contracts.errors import Conflict, ControlUnavailable, NotFound
from walvec.definitions.model import Organization
from walvec.runtime.lifecycle import cancelled, pause

log_ = logging.getLogger(__name__)
_AGAIN_SECONDS = 2.0


async def departing(remover: Remover, stop: asyncio.Event) -> None:
    """Until `stop`: deletes every organization that is marked for it."""
    feed = remover.control.feed
    while not stop.is_set():
        now = feed.current
        try:
            for organization in [o for o in now.organizations.values() if o.status == "deleting"]:
                await depart(organization, remover)
        except ControlUnavailable as e:
            log_.warning("organizations wait to be deleted", extra={"action": "depart_wait", "reason": e.message})
        except Conflict as e:  # somebody was still entering a definition when it was marked
            log_.info("an organization is not empty yet", extra={"action": "depart_again", "reason": e.message})
        except Exception:
            log_.exception("an organization could not be deleted", extra={"action": "depart_failed"})
        if any(o.status == "deleting" for o in feed.current.organizations.values()):
            await pause(stop, _AGAIN_SECONDS)
        else:
            await _moved(remover, now.version, stop)


async def depart(organization: Organization, remover: Remover) -> None:
    """Raises ControlUnavailable, Conflict. Several processes may do so at once: what is gone already is passed over."""
    control = remover.control
    now = await control.definitions.snapshot()
    own = {e.id for e in now.environments.values() if e.org_id == organization.id}
    for table in [t for t in now.vector_tables.values() if t.environment_id in own]:
        try:
            await remove_vector_table(table, remover)
        except NotFound:
            continue
    for connection in [c for c in now.connections.values() if c.environment_id in own]:
        try:
            await remove_connection(connection, remover)
        except NotFound:
            continue
    try:
        await control.accounts.delete_organization(organization.id)
    except NotFound:
        return
    log_.info("organization deleted", extra={"action": "departed", "subject": organization.id})


async def _moved(remover: Remover, version: int, stop: asyncio.Event) -> None:
    moved = asyncio.create_task(remover.control.feed.changed(version))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({moved, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(moved, stopped)
