"""``signalbus trace show``: one signal, where it went, and what it caused."""

from __future__ import annotations

import shutil
import time
from typing import Annotated, Literal

from cyclopts import Parameter

from ..trace.model import Trace
from ..trace.rendering_json import render_json
from ..trace.rendering_otlp import render_otlp
from ..trace.rendering_sequence import render_sequence
from ..trace.rendering_tree import TreeView, render_tree
from ..trace.rendering_waterfall import render_waterfall
from .daemon import RouterOption
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr
from .traces import OpenTraces, StoreOption, inspection, note_behind, one_signal

EXAMPLES = """Examples:
  signalbus trace show 01929f
  signalbus trace show 01929f --format waterfall
  signalbus trace show 01929f --format sequence > order.mmd
  signalbus trace show 01929f --json | jq .signal.deliveries"""

Format = Literal["tree", "waterfall", "sequence", "json", "otlp"]


def trace_show(
    signal: Annotated[str, Parameter(help="The signal's id, or how it begins: six characters or more.")],
    *,
    format: Annotated[Format, Parameter(help="What to draw; sequence is Mermaid.")] = "tree",  # noqa: A002
    store: StoreOption = None,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Show what became of a signal: each delivery with its attempts, and the signals it caused.

    What nobody recorded, but must have been, is marked as inferred. --json is --format json.
    """
    log_to_stderr(options)

    async def show() -> int:
        output = Output(options)
        async with inspection(options, store, router) as found:
            trace = await found.traces.trace(await one_signal(found.traces, signal))
            note_behind(found.traces, output)
        output.line(_rendered(trace, "json" if options.json else format, found, output))
        return Exit.OK

    return run_interruptible(show)


def _rendered(trace: Trace, form: Format, found: OpenTraces, output: Output) -> str:
    width = shutil.get_terminal_size().columns if output.watched else None
    match form:
        case "tree":
            return render_tree(trace, TreeView(width=width, now=time.time(), consumers=found.consumers))
        case "waterfall":
            return render_waterfall(trace, width=width, now=time.time())
        case "sequence":
            return render_sequence(trace)
        case "json":
            return render_json(trace)
        case "otlp":
            return render_otlp(trace)
