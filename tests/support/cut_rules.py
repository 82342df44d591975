"""The rules of truncations and backups; checker.py names them and calls them."""

from __future__ import annotations

from collections.abc import Iterator

from support.histories import Copy, History
from support.view import View

FOREVER = 1 << 63


def held(history: History, view: View) -> Iterator[str]:
    """A truncation that somebody knows of before he asks holds for his question."""
    if history.first < view.held_before(FOREVER):
        yield f"the log begins at {history.first}, but {view.held_before(FOREVER)} was told to be the first position left"
    for refusal in history.refusals:
        due = view.held_before(refusal.began)
        if refusal.first < due:
            yield f"{refusal.client} was told that {refusal.first} is the first position left, when {due} was known to be"
    for cut in history.cuts:
        if cut.first is not None and cut.first < view.held_before(cut.sent_at):
            due = view.held_before(cut.sent_at)
            yield f"truncation {cut.number} of {cut.client} was answered with {cut.first}, when {due} was known"
    asked = [(one.client, one.began, one.seen) for one in history.subscriptions]
    asked += [(read.client, read.began, read.events) for read in history.reads]
    for client, began, events in asked:
        lowest = min((event.position for event in events), default=FOREVER)
        if lowest < view.held_before(began):
            yield f"{client} was given {lowest}, when {view.held_before(began)} was known to be the first position left"


def only(history: History, view: View) -> Iterator[str]:
    if history.first > view.reach_before(FOREVER):
        yield f"the log begins at {history.first}, and no truncation reached beyond {view.reach_before(FOREVER)}"
    for refusal in history.refusals:
        reach = view.reach_before(refusal.at)
        if not refusal.start < refusal.first <= reach:
            yield (
                f"{refusal.client} asked from {refusal.start} on and was told that {refusal.first} is the first position left; "
                f"the truncations until then reached {reach}"
            )
    for cut in history.cuts:
        if cut.first is not None and cut.first > view.reach_before(cut.ended_at):
            yield f"truncation {cut.number} of {cut.client} to {cut.position} was answered with {cut.first}"


def edge(history: History, view: View) -> Iterator[str]:
    """Where the events around it are known: the beginning of the log, and what each truncation was answered."""
    begins = history.log[0] if history.log else None
    owner = None if begins is None else view.owners.get(begins.id)
    if history.first and begins is not None and owner is not None:
        there = sum(event.position >= history.first for event in view.events(owner))
        if begins.id != owner.ids[0] or there < len(owner.ids):
            yield f"the log begins inside {owner.name}: {there} of its {len(owner.ids)} events are left"
    for cut in history.cuts:
        who = f"truncation {cut.number} of {cut.client} to {cut.position}"
        if cut.first is None:
            if cut.error and not cut.unknown:
                yield f"{who} was refused: {cut.error}"
            continue
        event = view.by_position.get(cut.first)
        append = None if event is None else view.owners.get(event.id)
        if event is None or append is None:
            continue
        if event.id != append.ids[0]:
            yield f"{who} was answered with {cut.first}, which is inside {append.name}"
        elif cut.first < cut.position and event.position + len(append.ids) <= cut.position:
            yield f"{who} was answered with {cut.first}, and {append.name} ends there before {cut.position}"


def last_versions(history: History, view: View) -> Iterator[str]:
    known = {event.stream: event for event in view.whole}
    for stream, event in known.items():
        told = history.last.get(stream)
        if told is None:
            yield f"{stream} is not listed, and had version {event.version} at {event.position}"
            continue
        # A removed one behind it may be one that nobody was told of.
        exact = event.position >= history.first
        if (told != (event.version, event.position)) if exact else (told < (event.version, event.position)):
            yield f"{stream} is told to end with version {told[0]} at {told[1]}, not {event.version} at {event.position}"


def backup(history: History, view: View) -> Iterator[str]:
    for copy in history.copies:
        yield from (f"{copy.name}: {text}" for text in _copy(copy, view))


def _copy(copy: Copy, view: View) -> Iterator[str]:
    if copy.verdict != "whole":
        yield f"the independent reader says: {copy.verdict}"
    if copy.head > view.head:
        yield f"it ends at {copy.head}, the log at {view.head}"
    if copy.head <= view.known_before(copy.began):
        yield f"it ends at {copy.head}, though position {view.known_before(copy.began)} was known before it began"
    if not view.held_before(copy.began) <= copy.first <= view.reach_before(FOREVER):
        yield f"its first position left is {copy.first}; {view.held_before(copy.began)} was known when it began"
    if copy.start > copy.first or [event.position for event in copy.events] != list(range(copy.start, copy.head)):
        yield f"it holds {len(copy.events)} events from {copy.start} to {copy.head}, with {copy.first} the first left"
    for event in copy.events:
        there = view.by_position.get(event.position)
        if there is not None and there[:5] != event[:5]:
            yield f"it has {event[:5]}, the log has {there[:5]}"
            return
