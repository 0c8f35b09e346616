"""Who may ask: addresses, names, tokens and passes. Pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from signalbus.errors import ConfigError
from signalbus.web.access import PASS_SECONDS, Access, split_address
from tests.web.world import TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_only_this_machine_needs_no_token(host: str) -> None:
    assert Access(host=host).loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.7", "bus.example", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_another_address_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="SIGNALBUS_TOKEN"):
        Access(host=host)
    assert not Access(host=host, token=TOKEN).loopback


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:8642", ("127.0.0.1", 8642)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
        ("[::]", ("::", 8642)),
        ("bus.example", ("bus.example", 8642)),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(listen: str, address: tuple[str, int]) -> None:
    assert split_address(listen) == address


@pytest.mark.parametrize("listen", ["", ":80", "::1:80", "host:port", "http://host:80", "a b:80", "host:-1", "host:٣"])
def test_what_is_no_address_is_named(listen: str) -> None:
    with pytest.raises(ConfigError, match="no address to listen on"):
        split_address(listen)
    with pytest.raises(ConfigError, match="from 0 to 65535"):
        Access(port=65_536)


def test_names_that_may_be_pointed_at_us_are_not_ours() -> None:
    local = Access(names=frozenset({"bus.example"}))
    assert all(local.knows(name) for name in ("localhost", "127.0.0.1", "::1", "LocalHost.", "bus.example"))
    assert not any(local.knows(name) for name in ("evil.example", "localhost.evil.example", "10.0.0.7", ""))
    everywhere = Access(host="0.0.0.0", token=TOKEN)
    assert everywhere.knows("10.0.0.7")
    assert not everywhere.knows("evil.example")


@pytest.mark.parametrize("token", ["", "short", "with a blank in it", "nicht-ascii-äöü-äöü", "line\nline-line-line"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused_unseen(token: str) -> None:
    with pytest.raises(ConfigError, match="token") as caught:
        Access(token=token)
    assert not token or token not in str(caught.value)


def test_the_token_is_never_shown() -> None:
    access = Access(token=TOKEN)
    assert TOKEN not in repr(access)
    assert TOKEN not in access.make_pass()


def test_only_the_token_is_admitted() -> None:
    access = Access(token=TOKEN)
    assert access.admits(TOKEN)
    assert not any(access.admits(token) for token in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\ud800"[:0] + "é"))
    assert not Access().admits("")


def test_a_pass_ends_and_belongs_to_its_token() -> None:
    now = [1_000.0]
    access = Access(token=TOKEN, clock=lambda: now[0])
    shown = access.make_pass()
    assert access.admits_pass(shown)
    assert not Access(token="another-token-entirely", clock=lambda: now[0]).admits_pass(shown)
    expires, seal = shown.split(".")
    forged = (f"{int(expires) + 1}.{seal}", f"{expires}.{seal[:-1]}0", f"x.{seal}", "", ".", expires, f"{expires}.é")
    assert not any(access.admits_pass(each) for each in forged)
    now[0] += PASS_SECONDS
    assert not access.admits_pass(shown)


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-a-file-0123456789\n")
    path.chmod(0o600)
    environment = {"SIGNALBUS_TOKEN": TOKEN}
    assert Access.read("0.0.0.0:1", path, environment=environment).token == "from-a-file-0123456789"
    assert Access.read("0.0.0.0:1", environment=environment).token == TOKEN
    assert Access.read(environment={}).token is None


def test_a_token_file_that_is_missing_empty_or_open_to_all_is_named(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match=r"cannot read the token file .*token"):
        Access.read(token_file=path, environment={})
    path.write_text("")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is empty"):
        Access.read(token_file=path, environment={})
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Access.read(token_file=path, environment={})


def test_further_names_come_from_the_environment() -> None:
    access = Access.read(environment={"SIGNALBUS_HOSTS": " Router, bus.example,,"})
    assert access.names == {"router", "bus.example"}
    assert access.knows("ROUTER")
