"""API keys: who may ask. Only their hashes are held, and they are never logged."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from pipelines.ner.errors import UserError

VARIABLE = "RAYNER_API_KEYS"
MIN_CHARACTERS = 16


class ApiKeyError(UserError):
    """API keys that cannot be used, or are missing."""


class ApiKeys:
    """The keys of an endpoint; none means that everybody may ask."""

    def __init__(self, keys: list[str]) -> None:
        self.digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        """Whether keys are asked for."""
        return bool(self.digests)

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers (names in lower case) has a key; takes the same time for any other."""
        if not self.digests:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given)
        return sum(hmac.compare_digest(digest, one) for one in self.digests) > 0  # looks at all of them


def read_keys(file: str | None, *, are_needed: bool = False) -> ApiKeys:
    """Keys of a file, one a line, `#` for comments; without a file those of `RAYNER_API_KEYS`, separated by commas.

    Args:
        are_needed: refuse where neither is given; else everybody may ask then.
    """
    given = os.environ.get(VARIABLE, "")
    where = f"`{VARIABLE}`" if file is None else f"`{file}`"
    if file is None:
        keys = [key.strip() for key in given.split(",") if key.strip()]
    else:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ApiKeyError("the API keys cannot be read", where=where, value=reason) from error
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys and (file is not None or given or are_needed):
        rule = "one key a line" if file else "keys separated by commas, in the environment of every replica"
        raise ApiKeyError("no API key is found", where=where, rule=rule, remedy="`api_keys_file`, a file on every node")
    short = sum(len(key) < MIN_CHARACTERS or not key.isascii() for key in keys)
    if short:
        raise ApiKeyError(
            "an API key is too weak",
            where=where,
            rule=f"at least {MIN_CHARACTERS} ASCII characters",
            value=f"{short} of {len(keys)} are not",
            remedy="make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`",
        )
    return ApiKeys(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
