"""The commands there are. Imports nothing, since ``signalbus --help`` reads it."""

from __future__ import annotations

#: Name of each command, which is also its module (with ``_`` for the blank), and what it does.
COMMANDS = {
    "run": "serve the subscriptions of a bus: module:bus",
    "demo": "show the bus at work: a month of flights, a killed subscriber, nothing lost",
    "publish": "publish a signal, or many from JSON lines",
    "request": "send a request and print the reply",
    "respond": "respond to requests: with an echo, or with a program's output",
    "tail": "show signals as they are published",
    "subscribers": "list who serves each subscription, and whether it gets anywhere",
    "trace list": "list signals with what became of them",
    "trace show": "show one signal: where it went, each attempt, what it caused",
    "trace follow": "show signals as they come, and again as they get further",
    "trace explain": "say where a signal of a type would go, and why not elsewhere",
    "dead list": "list what was given up, in groups",
    "dead show": "show one dead letter: every failed attempt, its payload, what was done to it",
    "dead replay": "send dead letters to the subscriptions that failed on them, once more",
    "dead cancel": "stop a replay; what it has not sent is dead as before",
    "dead discard": "decide to do without; nothing is deleted",
    "dead restore": "bring back what was discarded",
    "dead export": "write whole dead letters as JSON lines",
    "dead audit": "list who did what to dead letters",
    "router": "keep the ledger of a RabbitMQ, for the trace commands",
    "topology": "list the subscriptions and what their queues hold",
    "doctor": "check this machine and the broker, and say what to do",
    "bench": "measure what the broker does from here",
    "version": "show versions",
}

#: First words of commands that have two.
GROUPS = frozenset(name.partition(" ")[0] for name in COMMANDS if " " in name)

#: Global options that take a value, so that they may stand before the command.
VALUE_OPTIONS = ("--url", "--timeout")

HELP = """\
Usage: signalbus [OPTIONS] COMMAND [ARGS]

Signals with guaranteed delivery, on an embedded SQLite file or RabbitMQ.

Commands:
{commands}

Options of every command:
  --url URL        the broker: sqlite:///signalbus.db, amqp://user@host/vhost [env: SIGNALBUS_URL]
  --json           print JSON: one object, or one a line for streams
  --timeout SECS   how long to wait for the broker, or for what was asked for
  --quiet, -q      print errors only
  --verbose, -v    print more; errors come with their traceback
  --no-color       print without colour [env: NO_COLOR]
  --yes            take every question as answered with yes
  --help, -h       show help; `signalbus COMMAND --help` shows that of a command
  --version        show versions

Exit codes: 0 ok, 1 failed, 2 usage, 3 broker unreachable, 4 not permitted, 5 not found,
  6 finished, but the outcome is bad, 7 timed out, 130 and 143 stopped by a signal

Examples:
  signalbus demo
  signalbus run shop.signals:bus --workers 2
  signalbus publish order.placed '{{"order_id": "A1", "total": 9.5}}'
  signalbus request quote.get '{{"symbol": "ABC"}}'
  signalbus tail 'order.*' --json
  signalbus trace list --failed
  signalbus dead replay --group 5f0c2a91
"""


def help_text() -> str:
    """Return the help of the whole program."""
    return HELP.format(commands=_listed(COMMANDS))


def group_help(group: str) -> str:
    """Return the help of the commands that begin with the same word."""
    listed = _listed({name: summary for name, summary in COMMANDS.items() if name.startswith(f"{group} ")})
    return (
        f"Usage: signalbus {group} COMMAND [ARGS]\n\nCommands:\n{listed}\n\n"
        f"`signalbus {group} COMMAND --help` shows the help of one.\n"
    )


def _listed(commands: dict[str, str]) -> str:
    return "\n".join(f"  {name:<13} {summary}" for name, summary in commands.items())
