"""The documents are true: their programs run verbatim, and what they name exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers_available import RIGHTS
from tests.cli.program import PROGRAM

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match.groups(default="")) for match in FENCE.finditer(page.read_text())]


def environment(tmp_path: Path) -> dict[str, str]:
    programs = Path(sys.executable).parent
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "HOME": str(tmp_path),
    }


def programs() -> list[tuple[Path, str]]:
    """Python blocks that do something when run; ``shop.py`` only declares, and is served by terminal 1."""
    return [
        (page, b.title) for page in PAGES for b in blocks(page) if b.language == "python" and "asyncio.run" in b.text
    ]


@pytest.mark.parametrize(("page", "title"), programs(), ids=lambda value: getattr(value, "name", value))
def test_program_of_a_document_runs_verbatim(page: Path, title: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            (tmp_path / block.title).write_text(block.text)
    if title == "publisher.py":
        # It publishes what the shop above it subscribes to.
        declare = "import asyncio, shop\nasync def main():\n    async with shop.bus: pass\nasyncio.run(main())"
        subprocess.run([sys.executable, "-c", declare], cwd=tmp_path, env=environment(tmp_path), timeout=60, check=True)
    ran = subprocess.run(
        [sys.executable, title], cwd=tmp_path, env=environment(tmp_path), timeout=60, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", ["quickstart.py", "retries.py", "requests.py"])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "examples" / name)]
    env = environment(tmp_path)
    ran = subprocess.run(program, cwd=tmp_path, env=env, timeout=60, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_terminals_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    shown = {block.title: block.text for block in blocks(PAGES[0])}
    (tmp_path / "shop.py").write_text(shown["shop.py"])
    env = environment(tmp_path)
    with subprocess.Popen(
        ["sh", "-ec", f"exec {shown['terminal 1']}"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            output: list[str] = []
            for line in serving.stdout:  # ends with the process, which pytest's timeout bounds
                output.append(line)
                if "billing" in line:
                    break
            published = subprocess.run(
                ["sh", "-ec", shown["terminal 2"]], cwd=tmp_path, env=env, timeout=60, capture_output=True, text=True
            )
            assert published.returncode == 0, published.stderr
            assert "billing" in published.stdout
            wanted = ["billed A-1: 12.50 (attempt 1)", "nothing to pay", "order_id: Field required"]
            while not all(any(want in line for line in output) for want in wanted):
                line = serving.stdout.readline()
                assert line, f"it ended after {output}"
                output.append(line)
            looked = subprocess.run(
                ["sh", "-ec", shown["terminal 3"]], cwd=tmp_path, env=env, timeout=60, capture_output=True, text=True
            )
            assert looked.returncode == 0, looked.stderr
            assert "would replay 2 dead letters" in looked.stdout
            assert "discarded 1 dead letter" in looked.stdout
        finally:
            serving.terminate()
    assert serving.returncode == 0


def test_the_rights_that_the_contract_suite_has_are_those_of_the_page() -> None:
    (line,) = re.findall(
        r"^rabbitmqctl set_permissions .*$", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE
    )
    assert tuple(shlex.split(line)[-3:]) == RIGHTS


def test_a_file_is_copied_as_the_page_says(tmp_path: Path) -> None:
    (command,) = [block.text for block in blocks(ROOT / "docs" / "operating.md") if block.title == "backup"]
    env = environment(tmp_path)
    declare = (
        "import asyncio, signalbus\n"
        "async def main():\n"
        "    async def never(data: int): raise AssertionError\n"
        "    async with signalbus.Bus() as bus:\n"
        "        await (await bus.subscribe('a', handler=never, name='waiting')).cancel()\n"
        "        await bus.publish('a', 1)\n"
        f"        assert __import__('os').system({command.strip()!r}) == 0\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", declare], cwd=tmp_path, env=env, timeout=60, check=True)
    shown = subprocess.run(
        [*PROGRAM, "topology", "--json", "--url", "sqlite:///copy.db"],
        cwd=tmp_path,
        env=env,
        timeout=60,
        check=True,
        capture_output=True,
    )
    [waiting] = json.loads(shown.stdout)["subscriptions"]
    assert (waiting["name"], waiting["ready"]) == ("waiting", 1)


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", PAGES[0].read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["guarantees.md", "faults.md"])
def test_every_row_names_tests_that_exist(page: str) -> None:
    rows = re.findall(r"^\| (?!situation|row)(.*)\|$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert rows
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"^ *(?:async )?def (\w+)", sources, re.MULTILINE))
    for row in rows:
        names = set(re.findall(r"`(\w+)`", row.split("|")[-1]))
        assert names, row
        assert names <= defined, names - defined
