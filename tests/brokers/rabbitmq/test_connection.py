"""Opening, closing, and what is said when the broker cannot be had."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.base import BrokerState, PublishResult, SubscriptionSpec
from signalbus.errors import BrokerUnavailable, ConfigError
from signalbus.testing.ports import free_port
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import (
    FAST,
    TIMEOUT,
    Brokers,
    broker_for,
    publish,
    publish_until_stored,
    receive,
    session,
    signal,
    wait_up,
)
from tests.support import eventually

CANARY = "s3cret-canary"


async def _refused(url: str, timeout: float = 1.0) -> str:
    broker = broker_for(url)
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.open(session(), timeout)
    assert time.monotonic() - started < timeout + 4
    assert broker.health().state is BrokerState.CLOSED
    return str(caught.value)


async def test_row_20_a_port_where_nobody_listens_is_named() -> None:
    port = free_port()
    message = await _refused(f"amqp://guest:{CANARY}@127.0.0.1:{port}/")
    assert f"127.0.0.1:{port}" in message
    assert "refused" in message
    assert CANARY not in message


async def test_row_20_a_host_that_does_not_exist_is_named() -> None:
    message = await _refused("amqp://guest:guest@no-such-host.invalid/")
    assert "no-such-host.invalid:5672" in message
    assert "DNS" in message


async def test_row_20_a_server_that_does_not_speak_is_given_up() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert f"127.0.0.1:{port}" in await _refused(f"amqp://guest:guest@127.0.0.1:{port}/")
    server.close()
    await server.wait_closed()


async def test_row_20_tls_is_never_replaced_by_plain_text(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    message = await _refused(f"amqps://{parts.netloc}{parts.path}")
    assert "TLS" in message


async def test_row_20_an_untrusted_certificate_is_refused_and_a_trusted_one_needs_its_name(
    amqp_url: str, tmp_path: Path
) -> None:
    certificate, key = await _certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    target = urlsplit(amqp_url)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(target.hostname, target.port)
        try:
            await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))
        finally:
            for side in (writer, up_writer):
                side.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    credentials = target.netloc.rpartition("@")[0]
    try:
        message = await _refused(f"amqps://{credentials}@localhost:{port}{target.path}")
        assert "the certificate is not trusted" in message
        brokers = Brokers(f"amqps://{credentials}@localhost:{port}{target.path}")
        broker = await brokers.open(options=f"{FAST}&ca={certificate}")
        await broker.declare(SubscriptionSpec(name="work", patterns=("#",)), TIMEOUT)
        assert await publish(broker, signal()) == [PublishResult.CONFIRMED]
        await brokers.aclose()
        wrong_name = broker_for(f"amqps://{credentials}@127.0.0.1:{port}{target.path}", f"{FAST}&ca={certificate}")
        with pytest.raises(BrokerUnavailable, match="not trusted"):
            await wrong_name.open(session(), 1.0)
    finally:
        server.close()
        await server.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def _certificate(directory: Path, name: str) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}"),
        *("-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    return certificate, key


async def test_a_wrong_password_and_a_missing_vhost_are_configuration_errors(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    for url in (
        f"amqp://guest:{CANARY}@{parts.hostname}:{parts.port}{parts.path}",
        f"amqp://{parts.netloc}/no-such-vhost",
    ):
        broker = broker_for(url)
        started = time.monotonic()
        with pytest.raises(ConfigError, match=f"{parts.hostname}:{parts.port}") as caught:
            await broker.open(session(), TIMEOUT)
        assert time.monotonic() - started < 5
        assert CANARY not in str(caught.value)


async def test_no_password_is_ever_written(caplog: pytest.LogCaptureFixture, amqp_url: str) -> None:
    caplog.set_level(logging.DEBUG)
    parts = urlsplit(amqp_url)
    for authority in (f"{parts.hostname}:{parts.port}", f"127.0.0.1:{free_port()}"):
        broker = broker_for(f"amqp://guest:{CANARY}@{authority}{parts.path}")
        with pytest.raises((BrokerUnavailable, ConfigError)) as caught:
            await broker.open(session(), 0.5)
        assert CANARY not in f"{caught.value!r} {broker!r} {broker.health()!r}"
    assert CANARY not in caplog.text


async def test_servers_are_tried_in_turn(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    credentials = parts.netloc.rpartition("@")[0]
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()},{parts.hostname}:{parts.port}"
    broker = broker_for(f"amqp://{credentials}@{hosts}{parts.path}")
    await broker.open(session(), TIMEOUT)
    assert broker.health().state is BrokerState.UP
    await broker.aclose()


async def test_row_9_a_broker_that_appears_later_is_found(brokers: Brokers, proxy: FaultProxy) -> None:
    await proxy.refuse()
    opening = asyncio.create_task(brokers.open(proxy.url_for(brokers.url)))
    await asyncio.sleep(1.0)
    assert not opening.done()
    await proxy.accept()
    broker = await opening
    assert broker.health().state is BrokerState.UP


async def test_a_broker_is_opened_once(brokers: Brokers) -> None:
    broker = await brokers.open()
    with pytest.raises(ConfigError):
        await broker.open(session(), 1)


async def test_closing_is_idempotent_and_safe_from_several_tasks(brokers: Brokers) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await asyncio.gather(*(broker.aclose() for _ in range(5)))
    await broker.aclose()
    await consumer.aclose()
    assert await consumer.receive() == ()


async def test_closing_into_a_black_hole_takes_a_few_seconds(brokers: Brokers, proxy: FaultProxy) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    consumer = await brokers.serve(broker)
    await publish(broker, *[signal(number) for number in range(10)])
    await receive(consumer, 10)
    proxy.black_hole()
    publishing = asyncio.create_task(publish(broker, signal(body=b"x" * 1_000_000), timeout=0.5))
    await asyncio.sleep(0)
    started = time.monotonic()
    await broker.aclose()
    assert time.monotonic() - started < 10
    await publishing


async def test_row_13_connections_are_made_again_twenty_times_and_nothing_is_lost(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    sink = brokers.sink(await brokers.serve(broker, prefetch=20))
    stored: set[object] = set()

    async def publish_all() -> None:
        for number in range(200):
            await publish_until_stored(broker, signal(number))
            stored.add(number)

    async def cut() -> None:
        for _ in range(20):
            await wait_up(broker)
            proxy.cut()
            await eventually(lambda: broker.health().state is not BrokerState.UP)

    await asyncio.gather(publish_all(), cut())
    await eventually(lambda: stored <= set(sink.numbers), 30)
    assert len(stored) == 200
    assert broker.health().counters["reconnects"] >= 20
    assert broker.health().counters.get("tasks_restarted", 0) == 0


async def test_row_14_connections_cut_inside_frames_lose_nothing(brokers: Brokers, proxy: FaultProxy) -> None:
    broker = await brokers.open(proxy.url_for(brokers.url))
    sink = brokers.sink(await brokers.serve(broker, prefetch=20))
    proxy.cut_after(2_000, 30_000)
    numbers = range(150)
    results = await asyncio.gather(*(publish_until_stored(broker, signal(number)) for number in numbers))
    assert len(results) == 150
    await proxy.heal()
    await eventually(lambda: set(numbers) <= set(sink.numbers), 30)
    assert broker.health().counters.get("tasks_restarted", 0) == 0


async def test_row_23_a_lost_consuming_connection_leaves_publishing_alone(
    brokers: Brokers, rabbitmq_node: PrivateNode
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    unconfirmed = [asyncio.create_task(publish(broker, signal(number))) for number in range(100)]
    await _close_connections(rabbitmq_node, brokers.url, "consume")
    results = {result for (result,) in await asyncio.gather(*unconfirmed)}
    assert results == {PublishResult.CONFIRMED}
    # All may have arrived before we notice the loss.
    await eventually(lambda: broker.health().counters["reconnects"] == 1)
    got: set[object] = set()
    async with asyncio.timeout(TIMEOUT):
        while len(got) < 100:
            got |= {incoming.signal.id for incoming in await consumer.receive()}
    counters = broker.health().counters
    assert (counters["reconnects"], counters["connections_lost"]) == (1, 1)


async def _close_connections(node: PrivateNode, url: str, role: str) -> None:
    vhost = urlsplit(url).path[1:]
    await node.eval(
        f'[rabbit_networking:close_connection(Pid, "test") || [{{pid, Pid}}, {{vhost, V}}, {{client_properties, P}}] '
        f'<- rabbit_networking:connection_info_all([pid, vhost, client_properties]), V =:= <<"{vhost}">>, '
        f'lists:any(fun({{<<"connection_name">>, _, N}}) -> binary:match(N, <<"{role}">>) =/= nomatch; '
        "(_) -> false end, P)]"
    )


async def test_row_21_rights_revoked_while_up_degrade_and_come_back(
    brokers: Brokers, rabbitmq_node: PrivateNode, proxy: FaultProxy
) -> None:
    vhost = urlsplit(brokers.url).path[1:]
    user = f"user-{vhost}"
    await rabbitmq_node.add_user(user, CANARY, vhost=vhost)
    url = f"amqp://{user}:{CANARY}@127.0.0.1:{rabbitmq_node.port}/{vhost}"
    broker = await brokers.open(url)
    consumer = await brokers.serve(broker)
    await rabbitmq_node.eval(f'rabbit_auth_backend_internal:change_password(<<"{user}">>, <<"other">>, <<"test">>)')
    await _close_connections(rabbitmq_node, brokers.url, "test")
    await eventually(lambda: broker.health().state is BrokerState.DEGRADED)
    assert CANARY not in broker.health().reason
    before = broker.health().counters["connects_failed"]
    await asyncio.sleep(3)
    assert broker.health().counters["connects_failed"] - before <= 3 * 3 / 0.5  # three links, at most 2 a second each
    await rabbitmq_node.eval(f'rabbit_auth_backend_internal:change_password(<<"{user}">>, <<"{CANARY}">>, <<"test">>)')
    await wait_up(broker)
    assert await publish(broker, signal()) == [PublishResult.CONFIRMED]
    assert await receive(consumer)


async def test_a_user_without_rights_is_told_what_is_missing(brokers: Brokers, rabbitmq_node: PrivateNode) -> None:
    vhost = urlsplit(brokers.url).path[1:]
    await brokers.open()
    user = f"reader-{vhost}"
    await rabbitmq_node.add_user(user, "pw")
    await rabbitmq_node.eval(
        f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{vhost}">>, <<"^$">>, <<".*">>, <<".*">>, '
        '<<"test">>)'
    )
    broker = broker_for(f"amqp://{user}:pw@127.0.0.1:{rabbitmq_node.port}/{vhost}")
    with pytest.raises(ConfigError, match="needs all rights on names that begin with 'signalbus'"):
        await broker.open(session(), TIMEOUT)


async def test_a_channel_refused_on_the_control_link_disturbs_nobody(brokers: Brokers, raw: AbstractChannel) -> None:
    """A refused declaration with publishes in flight."""
    broker = await brokers.open()
    await brokers.serve(broker)
    await raw.queue_declare("signalbus.q.odd", durable=True)
    publishing = [asyncio.create_task(publish(broker, signal(number))) for number in range(100)]
    with pytest.raises(ConfigError):
        await broker.declare(SubscriptionSpec(name="odd", patterns=("#",)), TIMEOUT)
    assert {result for (result,) in await asyncio.gather(*publishing)} == {PublishResult.CONFIRMED}
    assert broker.health().counters["reconnects"] == 0
