"""The command line: what to run, and where the results go."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika

from signalbus.testing.rabbitmq import PrivateNode, find_server

from . import (
    calls,
    collecting,
    crowd,
    embedded,
    idle,
    ledger,
    liveness,
    memory,
    queued,
    rabbitmq,
    router_memory,
)
from .figures import Benchmark
from .markdown import insert
from .plan import LONG, QUICK, Plan, Sizes
from .report import environment, print_report, write_json
from .runner import Result, run

_GROUPS = (embedded, ledger, idle, memory, queued, calls, liveness, rabbitmq, crowd, collecting, router_memory)
_ON_RABBITMQ = ("rabbitmq.", "ledger.collect", "ledger.router")
_LATEST = Path(__file__).parent / "results" / "latest.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks. A missed target is a figure, not a failure: only what cannot run makes the exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure signalbus against its targets.")
    parser.add_argument("--only", action="append", metavar="NAME", help="those whose name begins so; may be repeated")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant (default 5, 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--long", action="store_true", help=f"much more of everything about memory: {_listed(LONG)}")
    parser.add_argument("--json", type=Path, default=_LATEST, metavar="PATH", help="(default %(default)s)")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="draw what was measured, as PNG")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="put the figures into this page")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="for databases")
    parser.add_argument("--no-rabbitmq", action="store_true", help="the embedded broker only")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 5)
    sizes = QUICK if options.quick else Sizes()
    if options.long:
        sizes = dataclasses.replace(sizes, **LONG)
    only = tuple(options.only or ("",))
    with_rabbitmq = not options.no_rabbitmq and any(_needs_rabbitmq(name) for name in only)
    code = asyncio.run(measure(sizes, rounds, only, options.directory, options.json, with_rabbitmq=with_rabbitmq))
    if options.plots is not None and options.json.exists():
        from .plots import draw

        draw(options.json, options.plots)
    if options.markdown is not None and options.json.exists():
        insert(options.json, options.markdown)
    return code


async def measure(
    sizes: Sizes, rounds: int, only: tuple[str, ...], directory: Path, document: Path, *, with_rabbitmq: bool
) -> int:
    """Run the benchmarks whose names begin with one of ``only``; return the exit code."""
    async with _rabbitmq_url(wanted=with_rabbitmq) as amqp_url:
        plan = Plan(sizes=sizes, directory=directory, amqp_url=amqp_url)
        chosen = [benchmark for benchmark in _benchmarks(plan) if benchmark.name.startswith(only)]
        if not chosen:
            names = ", ".join(benchmark.name for benchmark in _benchmarks(plan))
            print(f"no benchmark begins with {' or '.join(only)}; there are {names}", file=sys.stderr)
            return 2
        found = environment(directory, await _server(amqp_url) if amqp_url else None)
        results: list[Result] = []
        for benchmark in chosen:
            results.append(await run(benchmark, rounds))
            write_json(document, found, results)  # of a long run that is stopped, what there is
    print_report(found, results)
    return 1 if any(result.error for result in results) else 0


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in sizes.items())


def _needs_rabbitmq(only: str) -> bool:
    return any(
        name.startswith(only) or only.startswith(name) for name in ("rabbitmq.", "ledger.collect", "ledger.router")
    )


def _benchmarks(plan: Plan) -> list[Benchmark]:
    return [benchmark for group in _GROUPS for benchmark in group.benchmarks(plan)]


@asynccontextmanager
async def _rabbitmq_url(*, wanted: bool) -> AsyncIterator[str | None]:
    """Yield the URL of a RabbitMQ: the one that is given, or a private node for as long as this takes."""
    given = os.environ.get("SIGNALBUS_TEST_AMQP_URL")
    if not wanted or given:
        yield given if wanted else None
    elif find_server() is not None:
        async with PrivateNode() as node:
            yield node.url()
    else:
        print("!!! no rabbitmq-server: the RabbitMQ benchmarks are skipped", file=sys.stderr)
        yield None


async def _server(url: str) -> str:
    async with await aio_pika.connect(url) as connection:
        transport = connection.transport
        properties = transport.connection.server_properties if transport is not None else {}
        return str(properties.get("version", "unknown version"))


if __name__ == "__main__":
    sys.exit(main())
