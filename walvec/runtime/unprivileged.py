"""Runs a program as somebody who is not root: PostgreSQL refuses uid 0, and containers often know nobody else.

Started as a script, before the program: `python unprivileged.py MODE DIRECTORY PROGRAM ARGUMENT…`. Imports nothing of
walvec, so that it runs wherever the interpreter does. The modes, in the order in which they are tried:

* `nobody`: become the user nobody (programs and directory must be reachable for it);
* `namespace`: a user namespace in which root is called 1000 (root's own directories stay reachable);
* `capability`: become nobody and keep the one right to pass directory permissions.

Next: `embedded_postgres.py`, which chooses.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

MODES = ("nobody", "namespace", "capability")

_CLONE_NEWUSER = 0x10000000
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def nobody() -> tuple[int, int]:
    """uid and gid of the user nobody."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def owner(mode: str) -> tuple[int, int]:
    """Who must own the files that a program in this mode calls its own."""
    return (0, 0) if mode == "namespace" else nobody()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _become_nobody() -> None:
    uid, gid = nobody()
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _enter_namespace() -> None:
    _check(_libc().unshare(_CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", "1000 0 1"), ("gid_map", "1000 0 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _keep_capability() -> None:
    libc = _libc()
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    _become_nobody()
    bit = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    _check(libc.capset(header, data))
    _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))


def main() -> None:
    mode, directory, *command = sys.argv[1:]
    {"nobody": _become_nobody, "namespace": _enter_namespace, "capability": _keep_capability}[mode]()
    os.chdir(directory)
    os.listdir(directory)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
