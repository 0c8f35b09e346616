"""URLs and settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from signalbus import ConfigError
from signalbus.config import RabbitUrl, Settings, SqliteUrl, masked, parse_url

ENCODED = "s3cret%2Fp%40ss%3Aword"


def test_sqlite_urls_name_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_url("sqlite:///bus.db") == SqliteUrl(path=tmp_path / "bus.db")
    assert parse_url("sqlite:////var/lib/bus.db") == SqliteUrl(path=Path("/var/lib/bus.db"))
    assert parse_url("sqlite:///a%20b.db") == SqliteUrl(path=tmp_path / "a b.db")
    assert parse_url("SQLITE:///bus.db") == SqliteUrl(path=tmp_path / "bus.db")
    options = "durability=normal&busy_timeout=2.5&min_free_bytes=0&network_filesystem=true"
    assert parse_url(f"sqlite:///bus.db?{options}") == SqliteUrl(
        path=tmp_path / "bus.db", durability="normal", busy_timeout=2.5, min_free_bytes=0, network_filesystem=True
    )


def test_rabbitmq_urls_name_servers_and_options() -> None:
    plain = parse_url("amqp://guest:guest@localhost")
    assert plain == RabbitUrl(servers=("amqp://guest:guest@localhost/",))
    several = parse_url("amqps://u:p@a:5671,b,c:1/v%2Fhost?queue_type=classic&heartbeat=4&prefix=x.y&silent_after=3")
    assert several == RabbitUrl(
        servers=("amqps://u:p@a:5671/v%2Fhost", "amqps://u:p@b/v%2Fhost", "amqps://u:p@c:1/v%2Fhost"),
        queue_type="classic",
        heartbeat=4,
        prefix="x.y",
        silent_after=3.0,
    )
    own_ca = parse_url("amqps://h/?ca=/etc/ca.pem&backoff_cap=0.5&lane=off")
    assert isinstance(own_ca, RabbitUrl)
    assert (own_ca.ca, own_ca.backoff_cap, own_ca.lane) == (Path("/etc/ca.pem"), 0.5, "off")
    assert isinstance(plain, RabbitUrl)
    assert plain.lane == "on"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "not a URL"),
        ("signalbus.db", "not a URL"),
        ("redis://localhost", "redis.*sqlite, amqp and amqps"),
        ("sqlite://host/bus.db", "names a host"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "keep no promise"),
        ("amqp://h?lane=fast", "lane is 'fast'; valid are on, off"),
        ("sqlite:///bus.db?durabilty=normal", "did you mean 'durability'"),
        ("sqlite:///bus.db?zzz=1", "valid are durability"),
        ("sqlite:///bus.db?durability=none", "full, normal"),
        ("sqlite:///bus.db?busy_timeout=long", "busy_timeout.*not a number"),
        ("sqlite:///bus.db?busy_timeout=-1", "busy_timeout"),
        ("sqlite:///bus.db?busy_timeout=nan", "busy_timeout"),
        ("sqlite:///bus.db?min_free_bytes=inf", "min_free_bytes"),
        ("sqlite:///bus.db?network_filesystem=yes", "true, false"),
        ("amqp:///vhost", "names no host"),
        ("amqp://h:port/", "port"),
        ("amqp://h:99999/", "port"),
        ("amqp://h/a/b", "a%2Fb"),
        ("amqp://h/?queue_typ=classic", "did you mean 'queue_type'"),
        ("amqp://h/?queue_type=stream", "quorum, classic"),
        ("amqp://h/?heartbeat=0", "heartbeat"),
        ("amqp://h/?heartbeat=x", "heartbeat"),
        ("amqp://h/?prefix=", "prefix"),
        ("amqp://h/?prefix=a%20b", "prefix"),
        (f"amqp://h/?prefix={'a' * 61}", "prefix"),
    ],
)
def test_a_url_that_cannot_work_says_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_url(url)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://user:{ENCODED}@host:bad/vhost",
        f"amqp://user:{ENCODED}@",
        f"amqp://user:{ENCODED}@host/a/b",
        f"redis://user:{ENCODED}@host",
        f"amqp://user:{ENCODED}@host/?prefx=1",
        f"amqp:user:{ENCODED}@host",
        f"user:{ENCODED}@host/vhost",
        "amqp://user:raw/ss%3Aword@host/vhost",
        "amqp://user:1/ss%3Aword@host/vhost",
    ],
)
def test_errors_show_no_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "ss%3Aword" not in str(caught.value)


def test_passwords_are_masked_everywhere() -> None:
    url = f"amqps://user:{ENCODED}@a:1,b:2/vhost"
    assert masked(url) == "amqps://user:***@a:1,b:2/vhost"
    assert ENCODED not in repr(Settings(url=url))
    assert ENCODED not in repr(parse_url(url))
    assert masked("sqlite:///bus.db") == "sqlite:///bus.db"
    assert masked("amqp://user@host/") == "amqp://user@host/"


def test_a_password_with_a_raw_at_sign_is_masked_whole() -> None:
    assert masked("amqp://user:p@ss@host/") == "amqp://user:***@host/"


def test_the_environment_is_read_and_arguments_win() -> None:
    environment = {
        "SIGNALBUS_URL": "sqlite:////tmp/env.db",
        "SIGNALBUS_NAME": "billing",
        "SIGNALBUS_PUBLISH_TIMEOUT": "2.5",
        "SIGNALBUS_MAX_SIGNAL_BYTES": "1000",
        "SIGNALBUS_DRAIN_TIMEOUT": "",
        "OTHER": "x",
    }
    settings = Settings.read(environment, name="own", url=None)
    assert settings == Settings(
        url="sqlite:////tmp/env.db", name="own", publish_timeout=2.5, max_signal_bytes=1000, drain_timeout=30.0
    )


def test_what_the_ledger_records_is_set_by_the_environment() -> None:
    plain = Settings.read({}).recording
    assert (plain.level, plain.share, plain.capture.mode) == ("all", 1.0, "off")
    told = Settings.read(
        {
            "SIGNALBUS_LEDGER": "failures",
            "SIGNALBUS_LEDGER_SAMPLE": "0.25",
            "SIGNALBUS_LEDGER_PAYLOAD": "truncated",
            "SIGNALBUS_LEDGER_REDACT": "iban, ssn,",
        }
    ).recording
    assert (told.level, told.share, told.capture.mode) == ("failures", 0.25, "truncated")
    assert told.capture.redact[-2:] == ("iban", "ssn")
    assert set(plain.capture.redact) < set(told.capture.redact), "further names, not others"


def test_how_long_the_embedded_broker_keeps_facts_is_in_its_url() -> None:
    url = parse_url("sqlite:///bus.db?ledger_days=0.5&ledger_bytes=1000000")
    assert isinstance(url, SqliteUrl)
    assert (url.ledger_days, url.ledger_bytes) == (0.5, 1_000_000)


def test_nothing_set_means_the_defaults() -> None:
    assert Settings.read({}) == Settings()
    assert Settings().url == "sqlite:///signalbus.db"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGNALBUS_PUBLISH_TIMEOUT", "soon"),
        ("SIGNALBUS_PUBLISH_TIMEOUT", "0"),
        ("SIGNALBUS_CONNECT_TIMEOUT", "-1"),
        ("SIGNALBUS_DRAIN_TIMEOUT", "nan"),
        ("SIGNALBUS_MAX_SIGNAL_BYTES", "1.5"),
        ("SIGNALBUS_NAME", "a\nb"),
        ("SIGNALBUS_URL", "redis://"),
        ("SIGNALBUS_LEDGER", "some"),
        ("SIGNALBUS_LEDGER_SAMPLE", "1.1"),
        ("SIGNALBUS_LEDGER_SAMPLE", "nan"),
        ("SIGNALBUS_LEDGER_PAYLOAD", "half"),
    ],
)
def test_a_setting_that_cannot_work_is_named(variable: str, value: str) -> None:
    name = variable.removeprefix("SIGNALBUS_").lower()
    with pytest.raises(ConfigError, match=f"(?i){variable}|{name}|unknown scheme"):
        Settings.read({variable: value})
