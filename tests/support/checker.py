"""What a broker promised, judged from what its clients noted down (support/writer.py) and what its log holds.

`judge` returns a list of broken promises in words; an empty list is the claim.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.writer import payload_of
from tidelog import Recorded

FAULTS_MAX = 20


@dataclass(slots=True)
class Noted:
    """One append as its writer knows it. `ended` is None when it was never answered."""

    writer: str
    number: int
    sent_at: int
    writes: list[tuple[str, list[str]]]
    ended: str | None = None
    ended_at: int = 0
    places: list[list[int]] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """Broken promises, and how much was looked at, so that an empty test is noticed."""

    faults: list[str] = field(default_factory=list)
    events: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    seen: int = 0

    def fault(self, text: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)


def lines(path: Path) -> list[dict[str, Any]]:
    """The notes in a file; a last line that is cut off was never a note."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def read_notes(paths: Iterable[Path]) -> list[Noted]:
    """All appends of all writers."""
    appends: list[Noted] = []
    for path in paths:
        mine: dict[int, Noted] = {}
        for row in lines(path):
            if row["what"] == "send":
                writes = [(stream, ids) for stream, ids in row["writes"]]
                mine[row["number"]] = Noted(path.name, row["number"], row["at"], writes)
            else:
                append = mine[row["number"]]
                append.ended, append.ended_at = row["what"], row["at"]
                append.places = row.get("places", [])
        appends += mine.values()
    return appends


def judge(log: list[Recorded], writers: Iterable[Path], subscribers: dict[Path, str]) -> Verdict:
    """`log`: everything, read at the end; `subscribers`: note file → its category ("" is everything)."""
    verdict = Verdict(events=len(log))
    appends = read_notes(writers)
    _judge_log(verdict, log)
    by_id = {event.id.hex: event for event in log}
    if len(by_id) != len(log):
        verdict.fault(f"{len(log) - len(by_id)} event ids stand in the log more than once")
    owned: set[str] = set()
    for append in appends:
        _judge_append(verdict, append, by_id)
        owned.update(event_id for _, ids in append.writes for event_id in ids)
    for stranger in sorted(by_id.keys() - owned)[:3]:
        verdict.fault(f"event {stranger} at position {by_id[stranger].position} was never appended")
    _judge_order(verdict, appends)
    for path, category in subscribers.items():
        _judge_subscriber(verdict, path, category, log)
    return verdict


def _judge_log(verdict: Verdict, log: list[Recorded]) -> None:
    """Positions and versions without a gap or repeat; times never go back; contents as their ids say."""
    versions: dict[str, int] = {}
    for place, event in enumerate(log):
        if event.position != place:
            verdict.fault(f"position {event.position} stands where {place} was due")
            return
        if event.version != versions.get(event.stream, -1) + 1:
            verdict.fault(f"version {event.version} of {event.stream} stands behind {versions.get(event.stream)}")
        versions[event.stream] = event.version
        if event.payload != payload_of(event.id.bytes) or event.metadata != event.id.bytes[:3]:
            verdict.fault(f"the content at position {place} is not what was appended")
    if any(one.recorded_at > two.recorded_at for one, two in pairwise(log)):
        verdict.fault("recorded_at goes back")


def _judge_append(verdict: Verdict, append: Noted, by_id: dict[str, Recorded]) -> None:
    """Acknowledged: there, at its places. Refused: not there. Otherwise whole, side by side and in order, or absent."""
    name = f"append {append.number} of {append.writer}"
    ids = [(stream, event_id) for stream, row in append.writes for event_id in row]
    found = [by_id.get(event_id) for _, event_id in ids]
    there = [event for event in found if event is not None]
    if append.ended == "ack":
        verdict.acknowledged += 1
        if len(there) != len(ids):
            verdict.fault(f"{name} was acknowledged, but only {len(there)} of its {len(ids)} events are in the log")
            return
    elif append.ended == "refused":
        verdict.refused += 1
        if there:
            verdict.fault(f"{name} was refused for good, but stands at position {there[0].position}")
        return
    else:
        verdict.unknown += 1
        if not there:
            return
        verdict.unknown_stored += 1
        if len(there) != len(ids):
            verdict.fault(f"{name} has no known outcome, and {len(there)} of its {len(ids)} events are in the log")
            return
    first = there[0].position
    for place, (event, (stream, _)) in enumerate(zip(there, ids, strict=True)):
        if event.position != first + place or event.stream != stream:
            verdict.fault(
                f"event {place} of {name} stands at {event.position} in {event.stream}, not behind the others"
            )
            return
    if append.ended == "ack":
        at = 0
        for (_, row), told in zip(append.writes, append.places, strict=True):
            one, last = there[at], there[at + len(row) - 1]
            if [one.position, last.position, one.version, last.version] != told:
                verdict.fault(f"{name} was told the places {told}, but stands at {one.position} … {last.position}")
            at += len(row)


def _judge_order(verdict: Verdict, appends: list[Noted]) -> None:
    """Reply A received before request B was sent ⇒ position A < position B (spec §6), over all processes."""
    acknowledged = [append for append in appends if append.ended == "ack"]
    answered = sorted(acknowledged, key=lambda append: append.ended_at)
    at, highest = 0, -1
    for append in sorted(acknowledged, key=lambda append: append.sent_at):
        while at < len(answered) and answered[at].ended_at < append.sent_at:
            highest = max(highest, max(place[1] for place in answered[at].places))
            at += 1
        if append.places[0][0] <= highest:
            verdict.fault(
                f"append {append.number} of {append.writer} got position {append.places[0][0]}, though {highest} had been "
                "acknowledged before it was sent"
            )


def _judge_subscriber(verdict: Verdict, path: Path, category: str, log: list[Recorded]) -> None:
    """Each event once, in order, none that is not in the log, and everything up to the end."""
    wanted = [event for event in log if not category or event.stream.startswith(category + "/")]
    seen = [row for row in lines(path) if row["what"] == "seen"]
    verdict.seen += len(seen)
    for place, row in enumerate(seen):
        if place >= len(wanted):
            verdict.fault(f"{path.name} saw position {row['position']}, which is not in the log")
            return
        event = wanted[place]
        if (row["position"], row["id"], row["stream"], row["version"]) != (
            event.position, event.id.hex, event.stream, event.version,
        ) or not row["whole"]:  # fmt: skip
            verdict.fault(f"{path.name} saw {row} where position {event.position} with id {event.id.hex} was due")
            return
    if len(seen) < len(wanted):
        verdict.fault(f"{path.name} saw {len(seen)} of {len(wanted)} events")
