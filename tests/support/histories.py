"""Histories: what clients noted down while they ran, and what the log holds at the end, read twice.

Owns the rows of the note files (support/writer.py writes them, support/checker.py judges them). A file is the life of one
process; its name is `<client>.<life>`, so that `w0.1` goes on where `w0.0` was killed. A row is one JSON object a line, in the
file when the call that writes it returns, so that a kill of its process loses nothing it was told; `at` is the monotonic
clock, which all processes of a host share.

    what        fields
    send        number, writes [[stream, expected, [[id, digest] …]] …]     before the call
    repeat      number                                                     before a call with the same events once more
    ack         number, places [[first position, last, first version, last] …], duplicate
    definite    number, error          it is not in the log and never will be
    unknown     number, error
    probe       number                 the append of this number asks whether this client is answered at all
    subscribed  began, scope, start, instead    scope: "" everything, "c/" a category, "c/1" a stream; `instead`: the
                                       position it would have begun with, had it not been truncated; else null
    seen        event [position, stream, version, id, digest]
    read        began, scope, events [[position …] …]
    head        began, head
    truncated   began, start, first    a read or a subscription from `start` was told that `first` is the first left
    cut         number, position       before a truncation
    cut_ack     number, first
    cut_failed  number, error, unknown
    end         the process ended because it was told to
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

from support.independent import reader
from tidelog import Client, Recorded, Truncated

Expectation = int | Literal["any", "none", "exists"]


class Stored(NamedTuple):
    """An event of the final log, or one that somebody saw. `recorded_at` is 0 where it was not noted."""

    position: int
    stream: str
    version: int
    id: str
    digest: str
    recorded_at: int = 0


class Part(NamedTuple):
    """One stream's part of an append: (event id, digest of its content) in order."""

    stream: str
    expected: Expectation
    events: list[tuple[str, str]]


@dataclass(slots=True)
class Try:
    """One call of an append. `ended` is None when it was never answered."""

    sent_at: int
    ended: Literal["ack", "definite", "unknown"] | None = None
    ended_at: int = 0
    places: list[list[int]] = field(default_factory=list)
    duplicate: bool = False
    error: str = ""


@dataclass(slots=True)
class Append:
    """One append as its client knows it: the events, and each call that was made for them."""

    client: str
    number: int
    parts: list[Part]
    tries: list[Try]
    probe: bool = False

    @property
    def name(self) -> str:
        return f"append {self.number} of {self.client}"

    @property
    def ids(self) -> list[str]:
        return [event_id for part in self.parts for event_id, _ in part.events]

    @property
    def acks(self) -> list[Try]:
        return [one for one in self.tries if one.ended == "ack"]

    @property
    def refused(self) -> bool:
        """Every call of it: what one call left open is not settled by another that was not even sent."""
        return all(one.ended == "definite" for one in self.tries)


@dataclass(slots=True)
class Subscription:
    """One subscription of one life: `scope` as in the rows, `start` in positions."""

    client: str
    scope: str
    start: int
    began: int
    instead: int | None = None
    seen: list[Stored] = field(default_factory=list)
    seen_at: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Cut:
    """One truncation as its client knows it; `first` is its answer, None without one."""

    client: str
    number: int
    position: int
    sent_at: int
    first: int | None = None
    ended_at: int = 0
    error: str = ""
    unknown: bool = False


class Refusal(NamedTuple):
    """Somebody who asked from `start` on was told that `first` is the first position left."""

    client: str
    began: int
    at: int
    start: int
    first: int


class Copy(NamedTuple):
    """What a backup holds, restored and read by the independent reader, or an export. `first`: what is truncated below."""

    name: str
    began: int
    verdict: str
    start: int
    first: int
    head: int
    events: list[Stored]


class Read(NamedTuple):
    """Events that a read gave, or with `scope` None the head that a client was told."""

    client: str
    began: int
    at: int
    scope: str | None
    events: list[Stored]
    head: int


@dataclass(slots=True)
class History:
    """Everything that the judge looks at. `calm_at`: when the last fault was over, None when nobody waited for that."""

    appends: list[Append] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    killed: set[str] = field(default_factory=set)
    calm_at: int | None = None
    cuts: list[Cut] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    first: int = 0
    log: list[Stored] = field(default_factory=list)
    proof_first: int = 0
    proof: list[Stored] = field(default_factory=list)
    proof_verdict: str = ""
    streams: dict[str, list[Stored]] = field(default_factory=dict)
    last: dict[str, tuple[int, int]] = field(default_factory=dict)
    """`log` by the client library, `proof` by the independent reader, which also finds what is truncated and still stored;
    `first` is the first position left, as each of them says. `streams`: each read alone by the library; `last`: the version
    and the position of each one's last event, as the broker lists them."""

    def add(self, client: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """One life's rows, in order. A row of a kind that is not known is an error, for it would not be judged."""
        self.clients.append(client)
        mine: dict[int, Append] = {}
        cuts: dict[int, Cut] = {}
        for row in rows:
            what, at = row["what"], row["at"]
            if what == "send":
                parts = [
                    Part(stream, expected, [tuple(e) for e in events]) for stream, expected, events in row["writes"]
                ]
                mine[row["number"]] = Append(client, row["number"], parts, [Try(at)])
            elif what == "repeat":
                mine[row["number"]].tries.append(Try(at))
            elif what in ("ack", "definite", "unknown"):
                last = mine[row["number"]].tries[-1]
                last.ended, last.ended_at, last.error = what, at, row.get("error", "")
                last.places, last.duplicate = (
                    [list(place) for place in row.get("places", [])],
                    bool(row.get("duplicate")),
                )
            elif what == "probe":
                mine[row["number"]].probe = True
            elif what == "subscribed":
                self.subscriptions.append(
                    Subscription(client, row["scope"], row["start"], row["began"], row["instead"])
                )
            elif what == "seen":
                self.subscriptions[-1].seen.append(Stored(*row["event"]))
                self.subscriptions[-1].seen_at.append(at)
            elif what == "read":
                events = [Stored(*event) for event in row["events"]]
                self.reads.append(Read(client, row["began"], at, row["scope"], events, 0))
            elif what == "head":
                self.reads.append(Read(client, row["began"], at, None, [], row["head"]))
            elif what == "truncated":
                self.refusals.append(Refusal(client, row["began"], at, row["start"], row["first"]))
            elif what == "cut":
                cuts[row["number"]] = Cut(client, row["number"], row["position"], at)
            elif what in ("cut_ack", "cut_failed"):
                cut = cuts[row["number"]]
                cut.ended_at, cut.first = at, row.get("first")
                cut.error, cut.unknown = row.get("error", ""), bool(row.get("unknown"))
            elif what == "end":
                self.ended.add(client)
            else:
                raise ValueError(f"{client} noted a row of an unknown kind: {what}")
        self.appends += mine.values()
        self.cuts += cuts.values()


def in_scope(scope: str, stream: str) -> bool:
    return stream.startswith(scope) if not scope or scope.endswith("/") else stream == scope


def digest_of(type: str, payload: bytes, metadata: bytes) -> str:
    """A short name of an event's content."""
    row = b"%d %d " % (len(type.encode()), len(metadata)) + type.encode() + metadata
    return blake2b(row + payload, digest_size=8).hexdigest()


def stored(event: Recorded) -> Stored:
    """What the client library gave, as a row that can be compared."""
    position, stream, version, kind, payload, metadata, raw_id, recorded_at = event
    return Stored(position, stream, version, raw_id.hex(), digest_of(kind, payload, metadata), recorded_at)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that is cut off was never a note."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def read_by_client(history: History, client: Client) -> None:
    """The whole log, each stream alone, and what is told of them, by the client library. Nobody may truncate meanwhile."""
    try:
        client.read_all(0)
    except Truncated as error:
        history.first = error.first_available
    history.log = [stored(event) for event in client.read_all()]
    for row in list(client.list_streams()):
        history.streams[row.stream] = [stored(event) for event in client.read_stream(row.stream)]
        history.last[row.stream] = (row.last_version, row.last_position)


def read_by_reader(history: History, data: Path) -> None:
    """The whole log by the reader that shares no code with broker and client."""
    found = copy_of("", 0, data)
    history.proof_first, history.proof, history.proof_verdict = found.first, found.events, found.verdict


def copy_of(name: str, began: int, data: Path) -> Copy:
    """What the independent reader finds in a directory."""
    walk = reader.Reader(data)
    start: int | None = None
    first, events = 0, []
    for item in walk.walk():
        if isinstance(item, reader.Event):
            digest = digest_of(item.type, item.payload, item.metadata)
            events.append(Stored(item.position, item.stream, item.version, item.id.hex(), digest, item.recorded_at))
        elif isinstance(item, reader.Control) and item.control == "truncate-log":
            first = max(first, item.fields[0])
        elif isinstance(item, reader.Group) and start is None:
            start = item.first_position
    begins = walk.head if start is None else start
    return Copy(name, began, str(walk.verdict), begins, max(first, begins), walk.head, events)


def slot(client: str) -> str:
    """The client whose lives these are: `w0` of `w0.3`."""
    return client.rpartition(".")[0] or client


def lives(names: Sequence[str]) -> list[str]:
    """Sorted by client, then by life."""
    return sorted(names, key=lambda name: (slot(name), int(name.rpartition(".")[2]) if "." in name else 0))
