"""The flights of January 2013, the signals they become, and what each subscription has to get. Pure, but for reading.

A row has ``NA`` for what did not happen: a flight without departure time was cancelled; one with a departure but no
arrival time was diverted and never came; some arrived with an unknown delay.
"""

from __future__ import annotations

import csv
import io
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from uuid import UUID, uuid5

from signalbus import Signal

NAMESPACE = UUID("0d5a4f0c-6b1e-5c27-9a77-3f1f5b0a2013")

DEPARTED, ARRIVED, CANCELLED = "departed", "arrived", "cancelled"

#: What each subscription of the demo asks for, by its name.
PATTERNS = {
    "delays": ("flight.departed.*", "flight.arrived.*"),
    "board": ("flight.#",),
    "cancellations": ("flight.cancelled.*",),
}

AIRLINES = {
    "9E": "Endeavor Air",
    "AA": "American Airlines",
    "AS": "Alaska Airlines",
    "B6": "JetBlue Airways",
    "DL": "Delta Air Lines",
    "EV": "ExpressJet Airlines",
    "F9": "Frontier Airlines",
    "FL": "AirTran Airways",
    "HA": "Hawaiian Airlines",
    "MQ": "Envoy Air",
    "OO": "SkyWest Airlines",
    "UA": "United Air Lines",
    "US": "US Airways",
    "VX": "Virgin America",
    "WN": "Southwest Airlines",
    "YV": "Mesa Airlines",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """The data of one signal: what a flight did. ``delay`` in minutes, None if it is not known."""

    carrier: str
    flight: int
    origin: str
    dest: str
    scheduled: str
    delay: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A movement with its kind, and the row of the file it comes from."""

    row: int
    kind: str
    movement: Movement

    @property
    def type(self) -> str:
        """The type of its signal, like ``flight.departed.EWR``."""
        airport = self.movement.dest if self.kind == ARRIVED else self.movement.origin
        return f"flight.{self.kind}.{airport}"


def read_events(rows: int | None = None) -> list[Event]:
    """Read the first ``rows`` rows, or all of them, as what happened."""
    packed = (files("signalbus.demo") / "data" / "flights-2013-01.csv.xz").read_bytes()
    reader = csv.DictReader(io.StringIO(lzma.decompress(packed).decode("ascii")))
    events: list[Event] = []
    for number, row in enumerate(reader, 1):
        if rows is not None and number > rows:
            break
        events.extend(_events(number, row))
    return events


def signal_id(run: str, row: int, kind: str) -> str:
    """Return the id of a signal: the same whenever it is worked out again for the same run."""
    return str(uuid5(NAMESPACE, f"{run}/{row}/{kind}"))


def signals(run: str, events: Iterable[Event]) -> Iterator[Signal]:
    """Yield the signals of a run."""
    source = source_of(run)
    for event in events:
        yield Signal(type=event.type, id=signal_id(run, event.row, event.kind), source=source, data=event.movement)


def source_of(run: str) -> str:
    """Return the source of a run's signals, by which its subscribers know them."""
    return f"signalbus-demo/{run}"


def expected(run: str, events: Sequence[Event]) -> dict[str, set[str]]:
    """Return the ids that each subscription has to get; from the file alone, without the bus' own matching."""
    kinds = {"delays": (DEPARTED, ARRIVED), "board": (DEPARTED, ARRIVED, CANCELLED), "cancellations": (CANCELLED,)}
    return {
        name: {signal_id(run, event.row, event.kind) for event in events if event.kind in wanted}
        for name, wanted in kinds.items()
    }


def _events(number: int, row: dict[str, str]) -> Iterator[Event]:
    def event(kind: str, delay: str = "NA") -> Event:
        return Event(
            number,
            kind,
            Movement(
                carrier=row["carrier"],
                flight=int(row["flight"]),
                origin=row["origin"],
                dest=row["dest"],
                scheduled=row["time_hour"],
                delay=None if delay == "NA" else int(delay),
            ),
        )

    if row["dep_time"] == "NA":
        yield event(CANCELLED)
        return
    yield event(DEPARTED, row["dep_delay"])
    if row["arr_time"] != "NA":
        yield event(ARRIVED, row["arr_delay"])
