from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import cast

import pytest

from consumers.archive import Archive, ArchiveInUse, Entry


def key(entry: Entry) -> str:
    return str(entry["id"])


def opened(directory: Path, max_bytes: int = 1_000_000, window: int = 1_000) -> Archive:
    return Archive(directory, key=key, max_bytes=max_bytes, window=window)


def ids(directory: Path) -> list[object]:
    lines = [line for path in sorted(directory.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [cast("Entry", json.loads(line))["id"] for line in lines]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def add(archive: Archive, *numbers: int) -> list[bool]:
    return await asyncio.gather(*(archive.add(str(number), {"id": str(number)}) for number in numbers))


async def test_an_entry_is_kept_once(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    assert await add(archive, 1, 2, 1, 2) == [True, True, False, False]
    assert await add(archive, 2, 3) == [False, True]
    archive.close()
    assert ids(tmp_path) == ["1", "2", "3"]


async def test_an_entry_is_kept_once_over_restarts(tmp_path: Path) -> None:
    for _ in range(3):
        archive = opened(tmp_path)
        await add(archive, 1, 2)
        archive.close()
    assert ids(tmp_path) == ["1", "2"]


async def test_only_the_newest_keys_are_remembered(tmp_path: Path) -> None:
    archive = opened(tmp_path, max_bytes=30, window=3)
    for number in range(6):
        await add(archive, number)
    archive.close()
    archive = opened(tmp_path, max_bytes=30, window=3)
    assert await add(archive, 5, 4, 3) == [False, False, False]
    assert await add(archive, 0) == [True]
    archive.close()


async def test_files_rotate_and_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "signals-00000002.jsonl").mkdir()
    archive = opened(tmp_path, max_bytes=25)
    for number in range(4):
        await add(archive, number)
    archive.close()
    assert names_in(tmp_path) == [".lock", *(f"signals-0000000{n}.jsonl" for n in (1, 2, 3))]
    assert (tmp_path / "signals-00000002.jsonl").is_dir()


@pytest.mark.parametrize("torn", [b'{"id": "9', b'{"id": "9"}', b'{"id": "9"\n', b"\x00" * 40, b"\n\n"])
async def test_a_torn_end_is_cut_off(torn: bytes, tmp_path: Path) -> None:
    archive = opened(tmp_path)
    await add(archive, 1, 2)
    archive.close()
    with (tmp_path / "signals-00000001.jsonl").open("ab") as file:
        file.write(torn)
    archive = opened(tmp_path)
    await add(archive, 3)
    archive.close()
    assert ids(tmp_path) == ["1", "2", "3"]


async def test_a_damaged_line_in_the_middle_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "signals-00000001.jsonl"
    path.write_bytes(b'{"id": "1"}\nrotten\n{"id": "2"}\n')
    archive = opened(tmp_path)
    assert await add(archive, 1, 2, 3) == [False, False, True]
    archive.close()
    assert path.read_bytes().startswith(b'{"id": "1"}\nrotten\n{"id": "2"}\n')


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    with pytest.raises(ArchiveInUse, match=str(os.getpid())):
        opened(tmp_path)
    archive.close()
    opened(tmp_path).close()


async def test_a_full_disk_is_an_error_and_leaves_no_half_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = opened(tmp_path)
    await add(archive, 1)
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 8:
            raise OSError(errno.ENOSPC, "no space")
        return write(descriptor, bytes(data)[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="no space"):
        await archive.add("2", {"id": "2"})
    monkeypatch.undo()
    assert await add(archive, 2) == [True]
    archive.close()
    assert ids(tmp_path) == ["1", "2"]


async def test_after_a_failed_sync_another_file_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = opened(tmp_path)
    await add(archive, 1)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "sync failed")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="sync failed"):
        await archive.add("2", {"id": "2"})
    monkeypatch.undo()
    assert await add(archive, 2) == [True]
    archive.close()
    assert ids(tmp_path) == ["1", "2"]
    assert len(names_in(tmp_path)) == 3  # with the lock
