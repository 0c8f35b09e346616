"""Evaluate Erlang expressions on a running node over one connection.

`rabbitmqctl eval` starts an Erlang VM each time (1-2 s). This keeps one hidden VM and asks it over pipes
(some milliseconds). It knows nothing of RabbitMQ.
"""

from __future__ import annotations

import base64
import os
import select
import subprocess
import time
from collections.abc import Mapping

# Reads lines "<milliseconds> <base64 of expressions>", answers "ok <base64>" or "error <base64>".
# Ends on end of file, so it cannot outlive the process that started it.
_PROGRAM = """
Node = list_to_atom(os:getenv("SIGNALBUS_PEER")),
Answer = fun(Word, Term) ->
    Text = unicode:characters_to_binary(io_lib:format("~tp", [Term])),
    io:put_chars([Word, " ", base64:encode_to_string(Text), "\\n"])
end,
Loop = fun(Self) ->
    case io:get_line("") of
        eof -> halt(0);
        {error, _} -> halt(1);
        Line ->
            [Milliseconds, Encoded] = string:lexemes(Line, " \\n"),
            try
                Source = unicode:characters_to_list(base64:decode(Encoded)),
                {ok, Tokens, _} = erl_scan:string(Source),
                {ok, Expressions} = erl_parse:parse_exprs(Tokens),
                case rpc:call(Node, erl_eval, exprs, [Expressions, []], list_to_integer(Milliseconds)) of
                    {value, Value, _} -> Answer("ok", Value);
                    Other -> Answer("error", Other)
                end
            catch _:Reason -> Answer("error", Reason)
            end,
            Self(Self)
    end
end,
Loop(Loop).
"""


class ErlangError(RuntimeError):
    """Raised when an expression fails on the node or the node does not answer in time."""


class Console:
    """A hidden Erlang node that evaluates expressions on `node`. Not safe for use by several threads at once."""

    def __init__(self, node: str, env: Mapping[str, str]) -> None:
        # The process id in the name lets a restarted test run coexist with a dying one.
        name = f"console-{os.getpid()}-{node}"
        self._process = subprocess.Popen(
            [
                *("erl", "-noshell", "-hidden", "-sname", name),
                *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
                *("-eval", _PROGRAM),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**env, "SIGNALBUS_PEER": node},
            start_new_session=True,
        )

    def eval(self, source: str, timeout: float) -> str:
        """Evaluate `source` (Erlang expressions, final dot optional) and return the printed value."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        source = source.strip().rstrip(".") + "."
        request = f"{int(timeout * 1000)} {base64.b64encode(source.encode()).decode()}\n"
        try:
            process.stdin.write(request.encode())
            process.stdin.flush()
            # The VM ends a call after `timeout`; the margin is for its own start.
            line = self._read_line(time.monotonic() + timeout + 10)
        except (OSError, EOFError) as exc:
            self.close()
            raise ErlangError(f"the Erlang console ended while it evaluated {source!r}") from exc
        word, _, encoded = line.partition(b" ")
        text = base64.b64decode(encoded).decode()
        if word != b"ok":
            raise ErlangError(f"{source!r} failed: {text}")
        return text

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            # poll and not select: tests that exhaust descriptors go beyond select's 1024.
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                # What comes later would be taken for the answer to the next question.
                self.close()
                raise ErlangError("the Erlang console does not answer")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise EOFError
            line += chunk
        return line

    @property
    def alive(self) -> bool:
        """Whether the console can still be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the VM. Idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # closing flushes what the dead VM will not read
