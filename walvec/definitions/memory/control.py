"""`ports.Control` put together from its parts."""

from __future__ import annotations

from walvec.definitions.memory.accounts import MemoryAccounts
from walvec.definitions.memory.answers import MemoryAnswers
from walvec.definitions.memory.definitions import MemoryDefinitions
from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.memory.letters import MemoryLetters
from walvec.definitions.memory.progress import MemoryProgress
from walvec.definitions.memory.removals import MemoryRemovals
from walvec.definitions.memory.reports import MemoryReports
from walvec.definitions.memory.states import MemoryStates
from walvec.definitions.memory.tasks import MemoryTasks
from walvec.definitions.model import Connection, VectorTable
from walvec.definitions.permits import MemoryPermits


class MemoryControl:
    """Implements `ports.Control`."""

    def __init__(self) -> None:
        self.feed = MemoryFeed()
        self.accounts = MemoryAccounts(self.feed)
        self.tasks = MemoryTasks(self.feed)
        self.letters = MemoryLetters(self.feed)
        self.progress = MemoryProgress(self.feed)
        self.reports = MemoryReports()
        self.permits = MemoryPermits()
        self.answers = MemoryAnswers()
        self.removals = MemoryRemovals(self.feed, self.progress)
        self.states = MemoryStates(self.feed, self.tasks)
        self.definitions = MemoryDefinitions(
            self.feed, self.tasks, self.letters, self.progress, self.reports, self.removals
        )

    def table(self, table_id: str) -> VectorTable:
        """As it is now. Raises NotFound."""
        return self.feed.table(table_id)

    def connection(self, connection_id: str) -> Connection:
        """As it is now. Raises NotFound."""
        return self.feed.connection(connection_id)

    async def close(self) -> None:
        """Nothing to give back."""
