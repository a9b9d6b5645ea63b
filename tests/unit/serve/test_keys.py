"""API keys: from a file or the environment; who has one may ask."""

import pytest

from serve.keys import MIN_CHARACTERS, VARIABLE, ApiKeyError, ApiKeys, read_keys
from serve.replica import Replica
from serve.settings import Arguments

GOOD, OTHER = "a-good-key-of-many-characters", "another-key-of-many-characters"


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_without_keys_everybody_may_ask():
    keys = read_keys(None)
    assert not keys
    assert keys.allow({})


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {GOOD}"},
        {"authorization": f"bearer  {GOOD} "},
        {"x-api-key": GOOD},
        {"x-api-key": OTHER},
        {"authorization": "Basic YTpi", "x-api-key": GOOD},  # of a proxy before us
    ],
)
def test_key_is_taken_from_either_header(headers):
    assert ApiKeys([GOOD, OTHER]).allow(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": GOOD},
        {"authorization": f"Basic {GOOD}"},
        {"authorization": f"Bearer {GOOD}x"},
        {"authorization": f"Bearer {GOOD[:-1]}"},
        {"authorization": "Bearer wrong", "x-api-key": GOOD},
        {"x-api-key": ""},
        {"x-api-key": GOOD.upper()},
        {"x-api-key": f"{GOOD},{OTHER}"},
        {"x-api-key": "schlüssel" * 3},
    ],
)
def test_without_a_known_key_nobody_may_ask(headers):
    assert not ApiKeys([GOOD, OTHER]).allow(headers)


def test_keys_themselves_are_not_held():
    keys = ApiKeys([GOOD])
    assert GOOD not in repr(vars(keys))


def test_file_has_a_key_a_line_and_comments(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the gateway\r\n{GOOD}\r\n\n   # of the batch job\n  {OTHER}  \n")
    keys = read_keys(str(file))
    assert len(keys.digests) == 2
    assert keys.allow({"x-api-key": GOOD})
    assert keys.allow({"x-api-key": OTHER})


def test_environment_has_keys_between_commas(monkeypatch):
    monkeypatch.setenv(VARIABLE, f" {GOOD}, {OTHER},,")
    keys = read_keys(None)
    assert keys.allow({"x-api-key": OTHER})
    assert len(keys.digests) == 2


def test_file_is_asked_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, GOOD)
    file = tmp_path / "keys"
    file.write_text(OTHER)
    keys = read_keys(str(file))
    assert keys.allow({"x-api-key": OTHER})
    assert not keys.allow({"x-api-key": GOOD})


@pytest.mark.parametrize("content", ["", "\n\n", "# only this\n"])
def test_file_without_keys_is_refused_for_it_would_let_everybody_in(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ApiKeyError, match="no API key"):
        read_keys(str(file))


@pytest.mark.parametrize("given", [" ", ",", " , "])
def test_environment_without_keys_is_refused_where_it_was_meant_to_have_some(monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(ApiKeyError, match="no API key"):
        read_keys(None)


def test_missing_keys_are_refused_where_they_are_needed(monkeypatch):
    with pytest.raises(ApiKeyError, match="no API key") as refused:
        read_keys(None, are_needed=True)
    assert VARIABLE in str(refused.value)
    assert "a file on every node" in str(refused.value)
    monkeypatch.setenv(VARIABLE, GOOD)
    assert read_keys(None, are_needed=True).allow({"x-api-key": GOOD})


def test_replica_that_finds_no_key_where_they_are_needed_does_not_start():
    with pytest.raises(ApiKeyError, match="no API key"):
        Replica(Arguments(model="m", needs_api_keys=True), b"k" * 32)


@pytest.mark.parametrize("weak", ["x" * (MIN_CHARACTERS - 1), "ü" * 30])
def test_weak_key_is_refused_and_not_shown(tmp_path, weak):
    file = tmp_path / "keys"
    file.write_text(f"{GOOD}\n{weak}\n", encoding="utf-8")
    with pytest.raises(ApiKeyError, match="too weak") as refused:
        read_keys(str(file))
    assert "1 of 2" in str(refused.value)
    assert weak not in str(refused.value)
    assert GOOD not in str(refused.value)


def test_weak_key_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ApiKeyError, match=VARIABLE):
        read_keys(None)


def test_unreadable_file_is_refused_by_name(tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, why in ((tmp_path / "nowhere", "No such file"), (tmp_path, "directory"), (binary, "UTF-8"), ("", "dir")):
        with pytest.raises(ApiKeyError, match=why) as refused:
            read_keys(str(path))
        assert str(path) in str(refused.value)
