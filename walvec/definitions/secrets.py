"""Credentials at rest: text <-> bytes under a key made from any string.

AES-256-GCM; the key is derived by scrypt, so that a short passphrase is dear to guess. The first byte is the format's
version. Each value is bound to its place (`where`), so that a stored secret cannot be moved to another row.

Several keys may be given: what is stored opens with any of them. The one in force is the one that opens the control
database's `key_check`, and everything new is sealed with it: so processes that know an old and a new key work side by
side until `rotation` moves all values to the new one at once. Next: `rotation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from walvec.contracts.errors import ConfigError

_VERSION = b"\x01"
_NONCE = 12
_SALT = b"walvec/credentials/1"
_CHECK = "walvec"


def kept_answer(org_id: str, environment: str, key: str) -> str:
    """The place that an idempotent request's answer is bound to."""
    return f"kept answer {org_id} {environment} {key}"


@lru_cache(maxsize=16)
def _cipher(secret_key: str) -> AESGCM:
    derived = Scrypt(salt=_SALT, length=32, n=2**14, r=8, p=1).derive(secret_key.encode("utf-8", "surrogatepass"))
    return AESGCM(derived)


class Secrets:
    """Encrypts with one secret key, decrypts with any it knows. `reread`: asked for the keys as they are now when none
    of these opens a value. Its repr shows nothing."""

    __slots__ = ("_keys", "_now", "_reread")

    def __init__(self, *secret_keys: str, reread: Callable[[], Sequence[str]] | None = None) -> None:
        if not secret_keys or not all(secret_keys):
            raise ConfigError("the secret key is empty.", "Set WALVEC_SECRET_KEY to any non-empty string.")
        self._keys = list(dict.fromkeys(secret_keys))
        self._now = self._keys[0]
        self._reread = reread

    def encrypt(self, text: str, where: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + _cipher(self._now).encrypt(nonce, text.encode(), where.encode())

    def decrypt(self, sealed: bytes, where: str) -> str:
        """Raises ConfigError when none of the keys is the one it was encrypted with."""
        return self._open(sealed, where)[1]

    def key_check(self) -> bytes:
        """A known text, to be stored once and checked at every start."""
        return self.encrypt(_CHECK, "key_check")

    def check(self, stored: bytes) -> None:
        """From now on what is encrypted is encrypted with the key that made `stored`. Raises ConfigError when that is
        none of these."""
        self._now = self._open(stored, "key_check")[0]

    def first(self) -> Secrets:
        """The first key alone."""
        return Secrets(self._keys[0])

    def _open(self, sealed: bytes, where: str) -> tuple[str, str]:
        if sealed[:1] != _VERSION:
            raise ConfigError(
                "a stored credential has a format that this version does not know.", "Start the newer walvec again."
            )
        nonce, body = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        tried: set[str] = set()
        while True:
            for key in [self._now, *self._keys]:
                if key in tried:
                    continue
                tried.add(key)
                try:
                    return key, _cipher(key).decrypt(nonce, body, where.encode()).decode()
                except InvalidTag:
                    continue
            fresh = [k for k in self._reread() if k not in tried] if self._reread else []
            if not fresh:
                raise ConfigError(
                    "the secret key is not the one that the stored credentials were encrypted with.",
                    "Set WALVEC_SECRET_KEY to the former value (without it: the secret key file in the data "
                    "directory), further ones in WALVEC_SECRET_KEYS_PREVIOUS, or drop schema walvec_control in the "
                    "control database and apply the definitions again.",
                )
            self._keys = [*fresh, *self._keys]
