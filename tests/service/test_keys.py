"""Keys: made once, kept as hashes, found again; a wrong file says where, and never the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import QuotaExceededError, StartupError
from service.keys import Keyring, new_key

HASH = "0" * 64


def ring(folder: Path, *entries: str) -> Keyring:
    path = folder / "keys.toml"
    path.write_text("\n".join(entries), encoding="utf-8")
    return Keyring(path)


def test_a_new_key_is_found_by_what_was_printed_and_by_nothing_else(tmp_path: Path) -> None:
    secret, entry = new_key("alice", tokens_per_minute=60)
    other, other_entry = new_key("ops", "admin")
    assert secret not in entry and len({secret, other}) == 2
    keys = ring(tmp_path, entry, other_entry)
    alice, ops = keys.find(secret), keys.find(other)
    assert alice is not None and ops is not None
    assert (alice.name, alice.role, alice.quota and alice.quota.tokens_per_minute) == ("alice", "user", 60)
    assert (ops.name, ops.role, ops.quota) == ("ops", "admin", None)
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), alice.digest.hex(), f"sha256:{alice.digest.hex()}"):
        assert keys.find(wrong) is None


@given(st.text())
def test_any_text_may_be_shown_as_a_key(text: str) -> None:
    assert Keyring(None).find(text) is None


def test_without_a_file_nobody_needs_a_key() -> None:
    assert not Keyring(None).required


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key, so nobody could call; `sparselane key NAME` makes one"),
        ("[a", "is no TOML"),
        ("a = 1", "'a' must be a table, named by"),
        ('["a b"]', "'a b' must be a table, named by"),
        ("[a]", r"\[a\] hash: must be sha256: and 64 hex digits"),
        ("[a]\nhash = 'sparselane_secret'", r"\[a\] hash: must be sha256: and 64 hex digits"),
        ("[a]\nhsh = 'x'", "has an unknown hsh; did you mean 'hash'"),
        (f"[a]\nhash = 'sha256:{HASH}'\nrole = 'root'", r"\[a\] role: Input should be 'user' or 'admin'"),
        (f"[a]\nhash = 'sha256:{HASH}'\ntokens_per_minute = 0", "greater than or equal to 1"),
        (f"[a]\nhash = 'sha256:{HASH}'\n[b]\nhash = 'sha256:{HASH}'", r"\[a\] and \[b\] have the same hash"),
    ],
)
def test_a_wrong_file_says_where_and_not_what_the_key_is(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StartupError, match=message) as raised:
        ring(tmp_path, text)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read: No such file"):
        Keyring(tmp_path / "keys.toml")


def test_a_name_must_be_fit_for_the_file() -> None:
    with pytest.raises(StartupError, match="'a b' must be 1 to 64 letters"):
        new_key("a b")


def test_reading_again_follows_the_file_or_changes_nothing(tmp_path: Path) -> None:
    made = {name: new_key(name, tokens_per_minute=60) for name in ("stays", "changes", "goes", "comes")}
    secrets = {name: secret for name, (secret, _) in made.items()}
    entries = {name: entry for name, (_, entry) in made.items()}
    keys = ring(tmp_path, entries["stays"], entries["changes"], entries["goes"])
    for name in ("stays", "changes"):
        key = keys.find(secrets[name])
        assert key is not None and key.quota is not None
        key.quota.take(60)
    changed = entries["changes"].replace("= 60", "= 61")
    (tmp_path / "keys.toml").write_text(entries["stays"] + changed + entries["comes"])
    keys.read()
    assert keys.find(secrets["goes"]) is None
    assert keys.find(secrets["comes"]) is not None
    changes, stays = keys.find(secrets["changes"]), keys.find(secrets["stays"])
    assert changes is not None and changes.quota is not None and stays is not None and stays.quota is not None
    changes.quota.take(61)
    with pytest.raises(QuotaExceededError):
        stays.quota.take(60)
    (tmp_path / "keys.toml").write_text("[a")
    with pytest.raises(StartupError):
        keys.read()
    assert keys.find(secrets["comes"]) is not None
