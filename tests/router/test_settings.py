"""Settings of a router: where they come from, which one wins, and what is wrong with one."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from signalbus.errors import ConfigError
from signalbus.router.settings import RouterSettings, Value, read_settings

ROOT = Path(__file__).parents[2]
SECRET = "canary-7f3a-of-16-or-more"
FULL = """
url = "amqp://user:{secret}@rabbit/vhost"
store = "/var/lib/signalbus/ledger.db"
keep_days = 30
keep_mib = 512
connect_timeout = 2.5
drain_timeout = 12
listen = "127.0.0.1:8642"
token_file = "{token_file}"
hosts = "bus.example, router"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    token_file = tmp_path / "token"
    token_file.write_text(f"{SECRET}\n")
    token_file.chmod(0o600)
    path = tmp_path / "router.toml"
    path.write_text(FULL.format(secret=SECRET, token_file=token_file))
    return path


def test_without_anything_there_are_defaults() -> None:
    assert read_settings(environment={}) == RouterSettings()


def test_a_file_sets_everything_but_the_token_itself(file: Path) -> None:
    settings = read_settings(file, {})
    assert (settings.keep_days, settings.keep_mib, settings.connect_timeout) == (30, 512, 2.5)
    assert settings.retention.seconds == 30 * 86_400
    assert settings.retention.bytes == 512 << 20
    listening = settings.access()
    assert listening is not None
    assert (listening.host, listening.port, listening.token) == ("127.0.0.1", 8642, SECRET)
    assert listening.names == {"bus.example", "router"}
    unset = {name.name for name in fields(RouterSettings) if getattr(settings, name.name) == name.default}
    assert unset == {"token"}


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, {}, 30.0),
        ({"SIGNALBUS_KEEP_DAYS": "20"}, {}, 20.0),
        ({"SIGNALBUS_KEEP_DAYS": "20"}, {"keep_days": 10.0}, 10.0),
        ({}, {"keep_days": 10.0}, 10.0),
        ({"SIGNALBUS_KEEP_DAYS": ""}, {"keep_days": None}, 30.0),
    ],
)
def test_flags_win_over_the_environment_and_that_over_the_file(
    file: Path, environment: dict[str, str], flags: dict[str, Value | None], expected: float
) -> None:
    assert read_settings(file, environment, **flags).keep_days == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keep_day = 3", "did you mean 'keep_days'"),
        ("colour = 3", "valid are url, store"),
        ('keep_days = "3"', "a number"),
        ("keep_days = true", "a number"),
        ("keep_mib = 1.5", "a whole number"),
        ("keep_mib = 0", "above 0"),
        ("keep_days = inf", "finite"),
        ("keep_days = nan", "finite"),
        ("drain_timeout = -1", "above 0"),
        ("store = 3", "a text, in quotes"),
        ("[store]\npath = 'x'", "a text, in quotes"),
        ("listen = '8642'", "is no address"),
        ("listen = 'localhost:http'", "is no address"),
        ("listen = 'localhost:70000'", "from 0 to 65535"),
        ("url = 'http://x/'", "unknown scheme"),
        ("url = 'amqp://h/?heart=1'", "heartbeat"),
        (f"token = '{SECRET}'", "token_file"),
        ("store = ", "no TOML"),
        ("store = 'a'\nstore = 'b'", "no TOML"),
    ],
)
def test_row_100_a_mistake_in_the_file_is_told_with_key_and_file(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(path, {})
    message = str(caught.value)
    assert says in message
    assert str(path) in message
    assert text.partition("=")[0].strip("[] \n").split("\n")[0].split("]")[0] in message or "no TOML" in message
    assert SECRET not in message


def test_row_100_a_missing_file_and_one_that_is_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        read_settings(tmp_path / "none.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml is no TOML"):
        read_settings(tmp_path / "binary.toml", {})


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SIGNALBUS_KEEP_DAYS", "a week", "a number"),
        ("SIGNALBUS_KEEP_MIB", "1.5", "a whole number"),
        ("SIGNALBUS_LISTEN", ":80", "is no address"),
        ("SIGNALBUS_URL", f"amqps//user:{SECRET}@h", "is not a URL"),
    ],
)
def test_row_100_a_mistake_in_the_environment_is_told_with_its_variable(variable: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}.*{says}") as caught:
        read_settings(environment={variable: text})
    assert SECRET not in str(caught.value)


def test_a_mistake_in_a_flag_is_told_with_the_flag() -> None:
    with pytest.raises(ConfigError, match="--keep-days is -1"):
        read_settings(environment={}, keep_days=-1.0)


def test_a_token_file_that_cannot_be_read_or_is_empty_is_told(tmp_path: Path) -> None:
    settings = RouterSettings(listen="[::1]:1", token_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="token file"):
        settings.access()
    (tmp_path / "none").touch(0o600)
    (tmp_path / "none").write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        settings.access()


def test_an_address_of_ipv6_has_brackets_only_in_the_setting() -> None:
    listening = RouterSettings(listen="[::1]:8642").access()
    assert listening is not None
    assert (listening.host, listening.port, listening.token) == ("::1", 8642, None)


def test_row_98_secrets_are_in_no_text_made_of_the_settings(file: Path) -> None:
    settings = read_settings(file, {"SIGNALBUS_TOKEN": SECRET})
    listening = settings.access()
    assert listening is not None
    assert listening.token == SECRET
    shown = f"{settings!r} {settings.shown()} {listening!r}"
    assert SECRET not in shown
    assert settings.shown()["token"] == "***"
    assert settings.shown()["url"] == "amqp://user:***@rabbit/vhost"


def test_the_settings_in_the_documentation_are_those_there_are(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "router.md").read_text()
    [block] = re.findall(r'^```toml title="router\.toml"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "router.toml"
    path.write_text(block)
    settings = read_settings(path, {})
    assert set(tomllib.loads(block)) == {each.name for each in fields(RouterSettings)} - {"token"}
    defaults = RouterSettings()
    for name in ("keep_days", "keep_mib", "connect_timeout", "drain_timeout"):
        assert getattr(settings, name) == getattr(defaults, name)
    for name in tomllib.loads(block):
        assert f"`SIGNALBUS_{name.upper()}`" in page
