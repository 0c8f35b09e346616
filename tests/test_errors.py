"""The error tree, and the public names."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from pathlib import Path

import pytest

import signalbus
from signalbus import errors
from signalbus.errors import BatchError, PublishUnconfirmed, SignalBusError, Unroutable


def classes() -> dict[str, type[BaseException]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }


def drawn() -> dict[str, str]:
    """Return parent by child, as the module's docstring draws it; handlers' exceptions have no parent of ours."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.partition("::\n")[2].splitlines():
        tree = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?:, ([A-Z]\w+))?", line)
        if tree is None:
            continue
        depth = len(tree[1]) // 4
        names = [name for name in tree.groups()[1:] if name]
        path = [*path[:depth], names[0]]
        for name in names:
            parents[name] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn() == {name: kind.__bases__[0].__name__ for name, kind in classes().items()}
    assert len(drawn()) > 10


def test_control_flow_is_no_error_of_the_bus() -> None:
    assert not issubclass(errors.Retry, SignalBusError)
    assert not issubclass(errors.Reject, SignalBusError)


def test_each_error_says_when_it_is_raised_and_shadows_no_builtin() -> None:
    for name, kind in classes().items():
        assert kind.__doc__, name
        assert kind.__doc__.startswith(("Raised ", "Base of ")), name
        assert not hasattr(builtins, name)


def test_errors_carry_their_data() -> None:
    unroutable = Unroutable("id-1", "order.placed")
    assert (unroutable.signal_id, unroutable.signal_type) == ("id-1", "order.placed")
    assert "order.placed" in str(unroutable)
    unconfirmed = PublishUnconfirmed("id-1", "connection lost")
    assert (unconfirmed.signal_id, unconfirmed.reason) == ("id-1", "connection lost")
    assert "same id" in str(unconfirmed)
    batch = BatchError([unroutable, unconfirmed])
    assert batch.outcomes == (unroutable, unconfirmed)
    assert "2 of 2" in str(batch)


def test_all_equals_the_public_names() -> None:
    # They are imported when first used; what type checkers see says which there are.
    tree = ast.parse(Path(inspect.getfile(signalbus)).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    assert list(signalbus.__all__) == sorted({alias.name for node in imports for alias in node.names})
    for name in signalbus.__all__:
        assert getattr(signalbus, name).__name__ == name
    with pytest.raises(AttributeError, match="NoSuchName"):
        getattr(signalbus, "NoSuchName")  # noqa: B009 - the module's own __getattr__


def test_public_names_are_documented() -> None:
    for name in signalbus.__all__:
        assert inspect.getdoc(getattr(signalbus, name)), name


def test_every_error_is_public() -> None:
    assert set(classes()) <= set(signalbus.__all__)
