"""Finding the bus that ``signalbus run`` is to serve."""

from __future__ import annotations

import importlib
import os
import sys

from ..bus import Bus
from ..config import Settings, masked
from .failures import CommandError, Exit
from .options import Options


def apply_options(options: Options) -> None:
    """Hand ``--url`` and ``--timeout`` to the module that is imported next, as the environment it reads."""
    if options.url is not None:
        os.environ["SIGNALBUS_URL"] = options.url
    if options.timeout is not None:
        os.environ["SIGNALBUS_CONNECT_TIMEOUT"] = str(options.timeout)


def load_bus(target: str, options: Options) -> Bus:
    """Import ``module:bus``, where ``bus`` is a `Bus` or a function that makes one.

    Errors of the module itself pass through, so that their traceback names the line.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise CommandError(
            f"{target[:80]!a} is not module:bus", code=Exit.USAGE, advice="signalbus run shop.signals:bus"
        )
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path has strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise CommandError(
            f"there is no module {error.name!a} in {os.getcwd()} or on the path",  # noqa: PTH109
            code=Exit.NOT_FOUND,
            advice="change to the directory of the module, or set PYTHONPATH",
        ) from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise CommandError(
                f"module {module_name!a} has no {attribute!a}", code=Exit.NOT_FOUND, advice=_advice(found, module_name)
            ) from error
    if not isinstance(found, Bus) and callable(found):
        found = found()
    if not isinstance(found, Bus):
        raise CommandError(f"{target} is {type(found).__name__}, not a Bus", code=Exit.USAGE)
    _check_url(found, target, options)
    return found


def _advice(module: object, module_name: str) -> str:
    buses = [name for name, value in vars(module).items() if isinstance(value, Bus)]
    return f"signalbus run {module_name}:{buses[0]}" if buses else "make one there: bus = Bus()"


def _check_url(bus: Bus, target: str, options: Options) -> None:
    wanted = Settings.read(url=options.url).url
    if options.url is not None and bus.settings.url != wanted:
        raise CommandError(
            f"{target} names its own broker, {masked(bus.settings.url)}, so --url would have no effect",
            code=Exit.USAGE,
            advice="write Bus() without a URL there, or leave --url out",
        )
