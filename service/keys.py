"""The keys that callers show: made once, kept as hashes in a file, found again."""

import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import StartupError, nearest
from service.quotas import Bucket

# Says what it is where one turns up, for people and for scanners of leaked secrets.
KEY_PREFIX: Final = "sparselane_"
# 256 bits from the system's generator: nobody tries them all, so one round of SHA-256 is as good at rest as scrypt,
# whose slowness is for passwords that people think of, and would cost every request tens of milliseconds of CPU.
KEY_BYTES: Final = 32
# Names stand in logs and as TOML keys.
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

Role = Literal["user", "admin"]


class _Entry(BaseModel):
    """One table of the keys file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    role: Role = "user"
    tokens_per_minute: Annotated[int | None, Field(ge=1)] = None


@dataclass(frozen=True)
class Key:
    """One caller; `quota` None: as many tokens as they like."""

    name: str
    role: Role
    digest: bytes
    quota: Bucket | None


class Keyring:
    """The keys of a file; replaced as a whole by `read`, where buckets of an unchanged quota keep their level."""

    def __init__(self, path: Path | None) -> None:
        """Read the keys; without a path there are none, and everybody may ask for answers.

        Raises:
            StartupError: see `read`.
        """
        self._path = path
        self._keys: tuple[Key, ...] = ()
        self.read()

    @property
    def required(self) -> bool:
        """Whether a key must be shown."""
        return self._path is not None

    def read(self) -> None:
        """Read the file again; where it is wrong the keys stay as they were.

        Raises:
            StartupError: the file cannot be read, has no key, or an entry is wrong; the message has no hash.
        """
        if self._path is not None:
            before = {key.name: key.quota for key in self._keys}
            self._keys = tuple(_key(name, entry, before.get(name)) for name, entry in _entries(self._path).items())

    def find(self, secret: str) -> Key | None:
        """Return the key of this secret. It takes as long for a wrong one, wherever it differs."""
        digest = sha256(secret.encode()).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_key(name: str, role: Role = "user", tokens_per_minute: int | None = None) -> tuple[str, str]:
    """Return a new secret, which is kept nowhere, and its table for the keys file.

    Raises:
        StartupError: a name that is not 1 to 64 letters, digits, - or _.
    """
    if not NAME.fullmatch(name):
        raise StartupError(f"the name {name!r} must be 1 to 64 letters, digits, - or _")
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    lines = [f"[{name}]", f'hash = "sha256:{sha256(secret.encode()).hexdigest()}"', f'role = "{role}"']
    if tokens_per_minute is not None:
        lines.append(f"tokens_per_minute = {tokens_per_minute}")
    return secret, "\n".join(lines) + "\n"


def _entries(path: Path) -> Mapping[str, _Entry]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"the keys file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, no TOML
        raise StartupError(f"the keys file {path} is no TOML: {error}") from None
    if not tables:
        raise StartupError(f"the keys file {path} has no key, so nobody could call; `sparselane key NAME` makes one")
    entries = {name: _entry(path, name, table) for name, table in tables.items()}
    hashes: dict[str, str] = {}
    for name, entry in entries.items():
        if (other := hashes.setdefault(entry.hash, name)) != name:
            raise StartupError(f"the keys file {path}: [{other}] and [{name}] have the same hash: make one anew")
    return entries


def _entry(path: Path, name: str, table: Any) -> _Entry:
    if not NAME.fullmatch(name) or not isinstance(table, dict):
        raise StartupError(f"the keys file {path}: {name!r} must be a table, named by 1 to 64 letters, digits, - or _")
    for field in table:
        if field not in _Entry.model_fields:
            raise StartupError(
                f"the keys file {path}: [{name}] has an unknown {field}{nearest(field, _Entry.model_fields)}"
            )
    try:
        return _Entry(**table)
    except ValidationError as error:
        first = error.errors()[0]
        # Not its value: somebody may have pasted the key itself.
        message = "must be sha256: and 64 hex digits" if first["loc"] == ("hash",) else first["msg"]
        raise StartupError(f"the keys file {path}: [{name}] {first['loc'][0]}: {message}") from None


def _key(name: str, entry: _Entry, before: Bucket | None) -> Key:
    quota = None
    if entry.tokens_per_minute is not None:
        same = before is not None and before.tokens_per_minute == entry.tokens_per_minute
        quota = before if same else Bucket(entry.tokens_per_minute)
    return Key(name, entry.role, bytes.fromhex(entry.hash.removeprefix("sha256:")), quota)
