"""What an operator should know about a log and its broker, each with a verdict and what to do. PURE: facts to findings.

A verdict is about this moment and these figures: nothing here reads the log, `tidelog verify` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidelog import Health

from .directory import Directory

OK, LOOK, ACT = "ok", "look", "act"
GIB = 1 << 30
ROOM_TO_ACT = 64 << 20
"""Bytes free below which appends are about to be refused."""
ROOM_TO_LOOK = GIB
"""The same for a look; the index needs as much again as it has while it is merged, so that comes on top."""
SLOW_SYNC_US = 1_000_000
SLOW_START_S = 10.0
START_S, BATCH_S, LOG_BYTES_S = 0.3, 1e-5, 5e8
"""What a start costs, roughly: itself, each batch behind the checkpoint, and bytes a second."""


class Finding(NamedTuple):
    """One line of the page; `do` is what to do about it, or what is worth knowing."""

    name: str
    verdict: str
    says: str
    do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A running one: its health, and INFO, the last check and the last checkpoint, unless it answers no more than health."""

    health: Health
    info: Mapping[str, Any] | None = None
    check: tuple[str, Mapping[str, Any] | None] = ("none", None)
    checkpoint: tuple[str, Mapping[str, Any]] = ("none", {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known: of the broker, if one runs, and of the directory, or why it can't be looked at. `file_system` is its type,
    `remote` says that it is one that Tidelog does not trust."""

    broker: Broker | None = None
    directory: Directory | None = None
    no_directory: str = ""
    file_system: str = ""
    remote: bool = False


def examine(facts: Facts) -> list[Finding]:
    """The page, in a fixed order; what is not known is left out."""
    return [*_broker(facts), *_disk(facts), *_log(facts), *_index(facts), *_figures(facts), *_damage(facts)]


def worst(findings: list[Finding]) -> str:
    """The verdict of a page."""
    return max((finding.verdict for finding in findings), key=[OK, LOOK, ACT].index, default=OK)


def size(count: int) -> str:
    """Bytes for people."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} bytes"


def counted(count: int, word: str, plural: str = "s") -> str:
    """A number and what it counts."""
    return f"{count:,} {word}{'' if count == 1 else plural}"


def duration(seconds: float) -> str:
    """A time for people."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


# -- who serves


def _broker(facts: Facts) -> Iterator[Finding]:
    broker = facts.broker
    if broker is None:
        directory = facts.directory
        assert directory is not None
        how = "was stopped cleanly" if directory.clean else "was not stopped cleanly, a start settles that"
        yield Finding("broker", OK, f"none runs here; the last one {how}")
        return
    health, info = broker.health, broker.info
    state = f"ready, head {health.head:,}" if health.ready else f"not ready: {health.reason}"
    if info is not None:
        state = f"version {info['version']}, pid {info['pid']}, running for {duration(info['uptime_seconds'])}, {state}"
    yield Finding("broker", OK if health.ready else ACT, state, "" if health.ready else _remedy(health.reason))
    if info is None:
        yield Finding("figures", ACT, "it answers nothing but health", "look at the line above, then ask again")
        return
    mode = (
        "strict: a mark before every acknowledgement"
        if info["strict"]
        else "marks: behind the newest mark, at most 64 groups or 64 MiB, damage can't be told from a torn tail (--strict)"
    )
    yield Finding("durability", OK, f"{mode}; groups aligned to {info['align']}")


def _remedy(reason: str) -> str:
    if "data-sync" in reason:
        return "the disk hangs: look at the kernel's log and at the disk; appends wait"
    if reason == "storage full":
        return "make room; the broker tries again every second, reads go on"
    if reason.startswith("read-only"):
        return "read out what you need; `tidelog verify` tells where the hole is"
    return "ask again when it is ready"


# -- the disk and the log


def _disk(facts: Facts) -> Iterator[Finding]:
    directory = facts.directory
    if directory is None:
        if facts.no_directory:
            yield Finding("disk", LOOK, facts.no_directory, "run this on the broker's host, as its user")
        return
    text = (
        f"{facts.file_system or 'an unknown file system'}, {size(directory.room)} of {size(directory.room_total)} free"
    )
    if facts.remote:
        yield Finding(
            "disk", ACT, text, "this kind of file system does not keep what the log needs: move it to a local disk"
        )
    elif directory.room < ROOM_TO_ACT:
        yield Finding("disk", ACT, text, "make room, or appends will be refused")
    elif directory.room < ROOM_TO_LOOK + directory.index_bytes:
        yield Finding("disk", LOOK, text, "make room: `tidelog truncate`, or a larger disk")
    else:
        yield Finding("disk", OK, text)


def _log(facts: Facts) -> Iterator[Finding]:
    directory, info = facts.directory, facts.broker.info if facts.broker else None
    if directory is not None and directory.problem:
        yield Finding("log", ACT, directory.problem, "a start will refuse this log: put the files back from a copy")
        return
    words: list[str] = []
    if directory is not None:
        words.append(f"{counted(directory.segments, 'segment')}, {size(directory.log_bytes)}")
    first = 0
    if info is not None:
        first = info["first_position"]
        words.append(f"head {info['head']:,}, {counted(info['groups'], 'group')}")
    elif directory is not None:
        first = directory.first_position
        at_least = "" if directory.clean else " at least"
        words.append(f"head {directory.head:,}{at_least}, {counted(directory.group, 'group')}")
    if first:
        words.append(f"what lay before position {first:,} was removed")
    if words:
        yield Finding("log", OK, ", ".join(words))
    if info is not None:
        yield Finding("streams", OK, f"{counted(info['streams'], 'stream')}, {counted(info['batches'], 'batch', 'es')}")


# -- the saved index and the next start


def _index(facts: Facts) -> Iterator[Finding]:
    directory, broker = facts.directory, facts.broker
    info = broker.info if broker else None
    if (info is None and directory is None) or (directory is not None and directory.problem):
        return  # nothing is known, or there will be no start
    if info is not None:
        group, age = info["checkpoint_group"], info["checkpoint_age_seconds"]
    else:
        assert directory is not None
        group, age = directory.checkpoint_group, None
    if age is None and directory is not None and group == directory.checkpoint_group:
        age = directory.checkpoint_age_seconds
    words = f"a checkpoint at group {group:,}" if group else "no checkpoint"
    if group and age is not None:
        words += f", {duration(age)} old"
    if info is not None and info["runs"]:
        words += f", {counted(info['runs'], 'run')}"
    if directory is not None and directory.index_bytes:
        words += f", {size(directory.index_bytes)} on disk"
    if broker is not None and broker.checkpoint[0] == "failed":
        why = broker.checkpoint[1].get("reason", "")
        yield Finding(
            "index", LOOK, f"{words}; the last attempt failed: {why}", "the broker tries again; see what it lacks"
        )
    elif directory is not None and directory.bad_checkpoint:
        yield Finding(
            "index", LOOK, f"{words}; {directory.bad_checkpoint} can't be used", "`tidelog checkpoint` makes a new one"
        )
    else:
        yield Finding("index", OK, words)
    yield from _start(directory, info)
    if info is not None:
        opened = info["opened"]
        since = f"behind group {opened['checkpoint_group']:,}" if opened["checkpoint_group"] else "from its beginning"
        yield Finding(
            "last start", OK,
            f"read the log {since}: {counted(opened['groups_read'], 'group')}, {size(opened['bytes_read'])}, and "
            f"{size(opened['index_bytes_read'])} of the saved index",
        )  # fmt: skip


def _start(directory: Directory | None, info: Mapping[str, Any] | None) -> Iterator[Finding]:
    """What a start after a kill would read, and how long that takes, roughly."""
    words: list[str] = []
    least = most = START_S
    if info is not None:
        words.append(counted(info["tail_batches"], "batch", "es"))
        least = most = least + info["tail_batches"] * BATCH_S
    if directory is not None:
        words.append(f"at most {size(directory.tail_bytes)}")
        least, most = (seconds + directory.tail_bytes / LOG_BYTES_S for seconds in (least, most))
        if info is None:
            most += directory.tail_events * BATCH_S  # there are no more batches than events
    times = f"about {duration(least)}" + (f" to {duration(most)}" if duration(most) != duration(least) else "")
    says = f"it would read {', '.join(words)} behind the checkpoint, in {times}"
    if least < SLOW_START_S:
        yield Finding("next start", OK, says)
    else:
        yield Finding("next start", LOOK, says, "`tidelog checkpoint` makes it short")


# -- figures of a running broker, damage


def _figures(facts: Facts) -> Iterator[Finding]:
    info = facts.broker.info if facts.broker else None
    if info is None:
        return
    known = f"{info['known_ids']:,} event ids are known, those of positions {info['id_window_begins']:,} and later"
    yield Finding("repeats", OK, f"{known}; the setting is {info['id_window_events']:,}")
    slowest = info["slowest_sync_us"]
    says = f"slowest group since the start {slowest / 1000:,.1f} ms, the last {info['last_sync_us'] / 1000:,.1f} ms"
    if slowest < SLOW_SYNC_US:
        yield Finding("sync", OK, says)
    else:
        yield Finding(
            "sync", LOOK, says, "appends waited that long: who else uses the disk, and what does the kernel's log say?"
        )


def _damage(facts: Facts) -> Iterator[Finding]:
    broker, directory = facts.broker, facts.directory
    if broker is not None and broker.health.degraded:
        yield Finding(
            "damage", ACT, broker.health.degraded, "`tidelog verify` tells how much; keep a copy of the directory"
        )
    elif broker is not None and broker.info is not None:
        yield _last_check(*broker.check)
    if directory is not None and directory.quarantine:
        names = directory.quarantine
        listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        yield Finding(
            "quarantine", LOOK, f"{counted(len(names), 'file')}, {size(directory.quarantine_bytes)}: {listed}",
            "what a start cut off (never acknowledged) or a repair took away: look at it, then delete it",
        )  # fmt: skip
    elif directory is not None:
        yield Finding("quarantine", OK, "empty")


def _last_check(state: str, report: Mapping[str, Any] | None) -> Finding:
    """A check that found damage has made health say so."""
    if state == "failed":
        return Finding(
            "damage", LOOK, f"the last check failed: {(report or {}).get('reason', '')}", "`tidelog verify` tries again"
        )
    if state == "running":
        return Finding("damage", OK, "none met; a check is running")
    if state == "done" and report is not None:
        return Finding("damage", OK, f"none: the last check read up to position {report['head']:,}")
    return Finding("damage", OK, "none met by reads; nobody has checked everything since the start (`tidelog verify`)")
