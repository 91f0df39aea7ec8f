"""Ports of 127.0.0.1 that nobody else takes: below those of outgoing connections, which take any that is free for a
moment, and of this test process alone where several run side by side."""

import os
import random
import socket

FIRST, LAST = 12_000, 32_000


def free_ports(count: int) -> list[int]:
    """Different ones. Who ends and starts again finds its own free again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(FIRST + worker, LAST, workers)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def free_port() -> int:
    return free_ports(1)[0]
