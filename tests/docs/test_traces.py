"""The commands of docs/traces.md do what it shows."""

from __future__ import annotations

import asyncio
import os
import subprocess
from datetime import timedelta
from pathlib import Path

from signalbus import Bus, Delivery, Reject, Retry
from tests.docs.test_documents import ROOT, blocks, environment


async def _history(url: str) -> str:
    async def bill(data: dict[str, int], delivery: Delivery) -> None:
        if data["n"] == 0:
            raise Reject("no such customer")
        if delivery.attempt == 1:
            raise Retry(delay=timedelta(milliseconds=1))
        await bus.publish("invoice.created", data, unroutable="ignore")

    bus = Bus(url, name="shop")
    bus.subscribe("order.*", handler=bill, name="billing")
    async with bus:
        await bus.publish("order.placed", {"n": 0}, until="acked", timeout=30)
        return (await bus.publish("order.placed", {"n": 1}, until="acked", timeout=30)).id


def test_commands_of_the_page_about_traces_work(tmp_path: Path) -> None:
    signal = asyncio.run(_history(f"sqlite:///{tmp_path / 'signalbus.db'}"))
    shown = [block for block in blocks(ROOT / "docs" / "traces.md") if block.language == "sh"]
    assert [block.title for block in shown] == ["list", "show", "explain"]
    for block in shown:
        for line in block.text.splitlines():
            ran = subprocess.run(
                ["sh", "-ec", line],
                cwd=tmp_path,
                env={**environment(tmp_path), "ID": signal, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
                timeout=60,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, (line, ran.stderr)
            assert ran.stdout, line
