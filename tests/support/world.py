"""Small histories that keep every promise, for the tests of the checker: they change one in one way, and it must say no."""

from __future__ import annotations

from typing import Any

from support.histories import Copy, History, Stored, digest_of

S = 1_000_000_000
CALM = 200 * S
Row = dict[str, Any]


def event_id(number: int) -> str:
    return (bytes([number]) * 16).hex()


def digest(number: int) -> str:
    return digest_of("a", bytes([number]), b"")


def send(number: int, at: int, *parts: tuple[str, Any, list[int]]) -> Row:
    writes = [[stream, expected, [[event_id(n), digest(n)] for n in numbers]] for stream, expected, numbers in parts]
    return {"what": "send", "at": at * S, "number": number, "writes": writes}


def ack(number: int, at: int, *places: list[int], duplicate: bool = False) -> Row:
    return {"what": "ack", "at": at * S, "number": number, "places": list(places), "duplicate": duplicate}


def row(what: str, at: int, **fields: Any) -> Row:
    return {"what": what, "at": at * S, **fields}


def subscribed(at: int, scope: str, start: int, instead: int | None = None) -> Row:
    return row("subscribed", at, began=at * S, scope=scope, start=start, instead=instead)


class World:
    """Two writers, one of them killed and born again, and two subscribers, one killed and born again.

    Event n of stream "s" or "t" holds byte n. 1, 2: one append; 3, 4: one over two streams; 5, 6: two in flight at once; 7, 8:
    unknown and stored; 9: refused; 10, 11: never answered, absent; 12: repeated; 13, 14: probes behind the faults.
    """

    def __init__(self) -> None:
        places = [(1, "s/1"), (2, "s/1"), (3, "t/1"), (4, "s/1"), (5, "t/1"), (6, "s/1"), (7, "s/1"), (8, "s/1"),
                  (12, "t/1"), (13, "s/1"), (14, "t/1")]  # fmt: skip
        recorded = {1: 1, 2: 1, 3: 2, 4: 2, 7: 8, 8: 8}
        versions = {"s/1": 0, "t/1": 0}
        self.log: list[Stored] = []
        for position, (number, stream) in enumerate(places):
            at = recorded.get(number, number)
            self.log.append(Stored(position, stream, versions[stream], event_id(number), digest(number), at))
            versions[stream] += 1
        self.proof = self.log.copy()
        self.proof_verdict = "whole"
        self.split()
        self.w0 = [
            send(1, 10, ("s/1", "none", [1, 2])), ack(1, 20, [0, 1, 0, 1]),
            send(2, 30, ("t/1", "any", [3]), ("s/1", 1, [4])), ack(2, 40, [2, 2, 0, 0], [3, 3, 2, 2]),
            send(3, 50, ("t/1", "any", [5])), send(4, 50, ("s/1", "any", [6])),
            ack(3, 60, [4, 4, 1, 1]), ack(4, 60, [5, 5, 3, 3]),
            row("head", 62, began=61 * S, head=6),
            row("read", 64, began=63 * S, scope="", events=[list(e[:5]) for e in self.log[2:6]]),
            send(5, 70, ("s/1", 10**9, [9])), row("definite", 80, number=5, error="WrongExpectedVersion: s/1"),
            send(6, 90, ("s/1", "exists", [7, 8])), row("unknown", 95, number=6, error="DeadlineExceeded: no answer"),
            send(7, 210, ("s/1", "any", [13])), row("probe", 210, number=7), ack(7, 211, [9, 9, 6, 6]),
            row("end", 212),
        ]  # fmt: skip
        self.w1 = [send(1, 99, ("s/1", "any", [10, 11]))]  # killed
        self.w1_again = [
            send(1, 120, ("t/1", "any", [12])), ack(1, 125, [8, 8, 2, 2]),
            row("repeat", 130, number=1), ack(1, 131, [8, 8, 2, 2], duplicate=True),
            send(2, 220, ("t/1", "any", [14])), row("probe", 220, number=2), ack(2, 221, [10, 10, 3, 3]),
            row("end", 222),
        ]  # fmt: skip
        self.s0 = [subscribed(1, "", 0), *self.seen(self.log[:3], 45)]  # killed
        self.s0_again = [subscribed(100, "", 3), *self.seen(self.log[3:], 222), row("end", 224)]
        category = [event for event in self.log if event.stream == "s/1"]
        self.s1 = [subscribed(1, "s/", 0), *self.seen(category, 222), row("end", 224)]
        self.killed = {"w1.0", "s0.0"}
        self.calm_at: int | None = CALM

    @staticmethod
    def seen(events: list[Stored], at: int) -> list[Row]:
        return [row("seen", at, event=list(event[:5])) for event in events]

    def split(self) -> None:
        """The streams read alone, as the log has them."""
        self.streams: dict[str, list[Stored]] = {}
        for event in self.log:
            self.streams.setdefault(event.stream, []).append(event)
        self.last = {name: (rows[-1].version, rows[-1].position) for name, rows in self.streams.items()}

    def both(self, log: list[Stored]) -> None:
        """This is the log, whoever reads it."""
        self.log, self.proof = log, log.copy()
        self.split()

    def renumbered(self, log: list[Stored]) -> None:
        """The same, with positions, versions and times made right again, so that only the one fault is left."""
        versions: dict[str, int] = {}
        made = []
        for position, event in enumerate(log):
            version = versions.get(event.stream, -1) + 1
            versions[event.stream] = version
            made.append(event._replace(position=position, version=version))
        times = sorted(event.recorded_at for event in made)
        self.both([event._replace(recorded_at=at) for event, at in zip(made, times, strict=True)])

    def history(self) -> History:
        history = History(calm_at=self.calm_at, killed=self.killed, log=self.log, proof=self.proof, streams=self.streams,
                          proof_verdict=self.proof_verdict, last=self.last)  # fmt: skip
        for name, rows in (("w0.0", self.w0), ("w1.0", self.w1), ("w1.1", self.w1_again), ("s0.0", self.s0),
                           ("s0.1", self.s0_again), ("s1.0", self.s1)):  # fmt: skip
            history.add(name, rows)
        return history


def store_behind_the_end(world: World, event: Stored) -> None:
    """It is in the log, and the subscribers saw it."""
    world.both([*world.log, event])
    for rows in (world.s0_again, world.s1) if event.stream == "s/1" else (world.s0_again,):
        rows[-1:-1] = world.seen([event], 223)


class TruncatedWorld(World):
    """The same with one who truncates, to position 2 in the end; a third subscriber who comes too late for what was before it,
    and two backups, one of before and one of behind the truncation.

    `first` and `proof_first` say from where on the log is there; everything before was there once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = self.proof_first = 2
        self.g0 = [
            cut(1, 150, 3), cut_ack(1, 151, 2), cut(2, 160, 1), cut_ack(2, 161, 2),
            row("truncated", 171, began=170 * S, start=0, first=2),
            row("read", 173, began=172 * S, scope="", events=[list(event[:5]) for event in self.log[2:5]]),
            row("end", 230),
        ]  # fmt: skip
        self.s2 = [
            row("truncated", 181, began=180 * S, start=0, first=2), subscribed(182, "", 2, 0),
            *self.seen(self.log[2:], 222), row("end", 224),
        ]  # fmt: skip
        self.copies = [
            Copy("backup1", 140 * S, "whole", 0, 0, 9, self.log[:9]),
            Copy("backup2", 190 * S, "whole", 0, 2, 9, self.log[:9]),
        ]

    def truncate_last(self, position: int, first: int) -> None:
        """Another truncation, the last thing that happens, and its answer."""
        self.g0[-1:-1] = [cut(3, 226, position), cut_ack(3, 227, first)]

    def history(self) -> History:
        history = super().history()
        history.first, history.proof_first, history.copies = self.first, self.proof_first, self.copies
        history.log = [event for event in history.log if event.position >= self.first]
        history.proof = [event for event in history.proof if event.position >= self.proof_first]
        history.streams = {
            name: [event for event in rows if event.position >= self.first] for name, rows in history.streams.items()
        }
        history.add("g0.0", self.g0)
        history.add("s2.0", self.s2)
        return history


def cut(number: int, at: int, position: int) -> Row:
    return row("cut", at, number=number, position=position)


def cut_ack(number: int, at: int, first: int) -> Row:
    return row("cut_ack", at, number=number, first=first)
