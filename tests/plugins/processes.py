"""Processes and directories that end with the tests, also when pytest itself is killed.

One reaper per session reads what it has to end from a pipe, and does so when the pipe closes. (A parent-death signal
would not do: it fires when the starting *thread* ends, and event loops start processes from threads.)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_REAPER = """
import os, shutil, signal, sys
held = {"process": set(), "directory": set()}
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    verb, kind, what = line.rstrip("\\n").split(" ", 2)
    (held[kind].add if verb == "hold" else held[kind].discard)(what)
for pid in held["process"]:
    try:
        os.killpg(int(pid), signal.SIGKILL)
    except OSError:
        pass
for directory in held["directory"]:
    shutil.rmtree(directory, ignore_errors=True)
"""
_lock = threading.Lock()
_reaper: subprocess.Popen[str] | None = None


def directory(prefix: str) -> Path:
    """A fresh temporary directory, removed at the end of the session at the latest."""
    made = Path(tempfile.mkdtemp(prefix=prefix))
    _tell("hold", "directory", made)
    return made


def removed(path: Path) -> None:
    _tell("drop", "directory", path)


def spawn(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process that leads a group of its own; what it prints is appended to `log`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(env) if env is not None else None,
            cwd=cwd,
        )
    _tell("hold", "process", process.pid)
    return process


def end(process: subprocess.Popen[bytes], sig: signal.Signals = signal.SIGKILL, timeout: float = 30) -> None:
    """Ends a process of `spawn`, its children too, and waits; what does not end in time is killed."""
    if process.poll() is None:
        process.send_signal(sig)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _tell("drop", "process", process.pid)


def _tell(verb: str, kind: str, what: object) -> None:
    global _reaper
    with _lock:
        if _reaper is None:
            _reaper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _REAPER], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
            atexit.register(_close)
        assert _reaper.stdin is not None
        _reaper.stdin.write(f"{verb} {kind} {what}\n")
        _reaper.stdin.flush()


def _close() -> None:
    assert _reaper is not None
    assert _reaper.stdin is not None
    _reaper.stdin.close()
    _reaper.wait()
