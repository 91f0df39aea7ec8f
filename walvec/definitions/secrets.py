"""Credentials at rest: text <-> bytes under a key made from any string.

AES-256-GCM; the key is derived by scrypt, so that a short passphrase is dear to guess. The first byte is the format's
version. Each value is bound to its place (`where`), so that a stored secret cannot be moved to another row.
"""

from __future__ import annotations

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from walvec.contracts.errors import ConfigError

_VERSION = b"\x01"
_NONCE = 12
_SALT = b"walvec/credentials/1"
_CHECK = "walvec"


@lru_cache(maxsize=8)
def _derived(secret_key: str) -> bytes:
    return Scrypt(salt=_SALT, length=32, n=2**14, r=8, p=1).derive(secret_key.encode("utf-8", "surrogatepass"))


class Secrets:
    """Encrypts and decrypts with one secret key. Its repr shows nothing."""

    __slots__ = ("_cipher",)

    def __init__(self, secret_key: str) -> None:
        if not secret_key:
            raise ConfigError("the secret key is empty.", "Set WALVEC_SECRET_KEY to any non-empty string.")
        self._cipher = AESGCM(_derived(secret_key))

    def encrypt(self, text: str, where: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._cipher.encrypt(nonce, text.encode(), where.encode())

    def decrypt(self, sealed: bytes, where: str) -> str:
        """Raises ConfigError when the key is not the one it was encrypted with."""
        if sealed[:1] != _VERSION:
            raise ConfigError(
                "a stored credential has a format that this version does not know.", "Start the newer walvec again."
            )
        nonce, body = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, body, where.encode()).decode()
        except InvalidTag as e:
            raise ConfigError(
                "the secret key is not the one that the stored credentials were encrypted with.",
                "Set WALVEC_SECRET_KEY to the former value (without it: the secret key file in the data directory), or "
                "drop schema walvec_control in the control database and apply the definitions again.",
            ) from e

    def key_check(self) -> bytes:
        """A known text, to be stored once and checked at every start."""
        return self.encrypt(_CHECK, "key_check")

    def check(self, stored: bytes) -> None:
        """Raises ConfigError when `stored` was made with another key."""
        self.decrypt(stored, "key_check")
