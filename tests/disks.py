"""Small file systems, to be filled up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

KIB = 1024


@contextmanager
def mounted(directory: Path, size: str) -> Generator[Path]:
    """Mount an empty file system of that size (``4m``) on a directory; skip the test where that cannot be."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("needs to mount")
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path, leave: int = 0) -> Path:
    """Leave less than ``leave`` bytes, or nothing, on the file system; return the file to remove."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while _free(directory) >= leave:
                file.write(b"\0" * 4 * KIB)
        except OSError:
            pass  # as it should be
    return filler


def _free(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize
