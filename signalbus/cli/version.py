"""``signalbus version``."""

from __future__ import annotations

import importlib.metadata
import platform
import sqlite3
from importlib.util import find_spec

from .failures import Exit
from .options import NO_OPTIONS, Options
from .output import Output

EXAMPLES = """Examples:
  signalbus version
  signalbus version --json"""

PACKAGES = ("aio-pika", "pydantic", "orjson")


def version(*, options: Options = NO_OPTIONS) -> int:
    """Show the versions of signalbus and of what it stands on."""
    versions = {
        "signalbus": importlib.metadata.version("signalbus-router"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }
    if find_spec("uvloop"):
        versions["uvloop"] = importlib.metadata.version("uvloop")
    output = Output(options)
    if options.json:
        output.json(versions=versions, platform=platform.platform())
    elif options.quiet:
        output.line(versions["signalbus"])
    else:
        for name, number in versions.items():
            output.line(f"{name:<10} {number}")
    return Exit.OK
