"""What the command line prints. PURE: values to lines.

Text for people never carries a control character to a terminal: names, types, payloads and errors come from others, and
a terminal obeys escape sequences. JSON is ASCII, so it can't either. Bytes that are not UTF-8 are `…_b64` in JSON.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidelog import Appended, CursorInfo, Health, Recorded, StreamRow


def printable(words: str) -> str:
    """Text with everything that is not to be seen written as an escape: controls, line ends, bidi marks, surrogates."""
    if words.isprintable():
        return words
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in words
    )


def printable_bytes(data: bytes) -> str:
    """Bytes as text for people; what is not UTF-8 as \\xNN."""
    return printable(data.decode("utf-8", "backslashreplace"))


def as_json(row: Mapping[str, Any]) -> str:
    """One object on one line of ASCII."""
    return json.dumps(row, separators=(",", ":"), default=_plain).replace("\x7f", "\\u007f")


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _bytes(name: str, data: bytes) -> tuple[str, str]:
    try:
        return name, data.decode()
    except UnicodeDecodeError:
        return f"{name}_b64", b64encode(data).decode("ascii")


def moment(recorded_at: int) -> str:
    """Microseconds since the epoch as local time."""
    try:
        return datetime.fromtimestamp(recorded_at / 1e6).isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{recorded_at} us"


def event_line(event: Recorded) -> str:
    """position  time  stream@version  type  payload  [metadata]"""
    line = (
        f"{event.position:>8}  {moment(event.recorded_at)}  {printable(event.stream)}@{event.version}  "
        f"{printable(event.type)}  {printable_bytes(event.payload)}"
    )
    return f"{line}  [{printable_bytes(event.metadata)}]" if event.metadata else line


def event_json(event: Recorded) -> str:
    """Every field; `append -` reads it back."""
    row = {"position": event.position, "stream": event.stream, "version": event.version, "type": event.type}
    row.update([_bytes("payload", event.payload), _bytes("metadata", event.metadata)])
    row.update(id=str(event.id), recorded_at=event.recorded_at)
    return as_json(row)


def appended_line(stream: str, appended: Appended) -> str:
    """Where an append stands."""
    again = "  (it was there already)" if appended.duplicate else ""
    return f"position {appended.first_position}  {printable(stream)}@{appended.first_version}{again}"


def appended_json(stream: str, appended: Appended) -> str:
    """Where an append stands."""
    row = {"stream": stream, **appended._asdict()}
    del row["boot_id"], row["generation"]
    return as_json(row)


def feed_line(events: int, appends: int, repeated: int, last_position: int | None) -> str:
    """What `append -` did."""
    end = "" if last_position is None else f", the last at position {last_position}"
    again = f", {repeated:,} of them were there already" if repeated else ""
    return f"{events:,} events in {appends:,} appends{end}{again}"


def stream_line(row: StreamRow) -> str:
    """One line of the list of streams."""
    deleted = "  deleted" if row.deleted else ""
    return f"{row.last_version + 1:>8} events  last at {row.last_position:>8}  {printable(row.stream)}{deleted}"


def stream_json(row: StreamRow) -> str:
    """One line of the list of streams."""
    return as_json(row._asdict())


def cursor_line(row: CursorInfo) -> str:
    """One line of the list of cursors."""
    stands = "never moved" if row.position is None else f"wants {row.position:>12}"
    held = f"  held by {printable(row.holder)}" if row.holder else ""
    return f"{stands:>18}  {printable(row.name)}{held}"


def figures(row: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    width = max(map(len, row), default=0)
    return "\n".join(
        f"{printable(name):<{width}}  {printable(value.hex() if isinstance(value, bytes) else str(value))}"
        for name, value in row.items()
    )


def health_line(health: Health) -> str:
    """How the broker is, in a line."""
    state = "ready" if health.ready else f"not ready: {printable(health.reason)}"
    return f"{state}, head {health.head}" + (f", degraded: {printable(health.degraded)}" if health.degraded else "")


def survey(found: Mapping[str, Any]) -> str:
    """What `tidelog verify` found: a verdict, figures, and at damage where, why, and what to do."""
    rows = [f"{found['verdict']}: {_verdict(found)}"]
    if found["events"]:
        counts = {
            "events": found["events"],
            "batches": found["batches"],
            "groups": found["groups"],
            "streams": found["streams"],
        }
        counts |= {"segments": len(found["segments"]), "bytes": found["bytes"]}
        words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        rows.append(f"positions {found['first_position']} to {found['head'] - 1}: {words}")
    else:
        rows.append(f"no events, head {found['head']}, {len(found['segments'])} segments")
    if found["quarantine"]:
        rows.append(f"quarantine/ holds {', '.join(found['quarantine'])}")
    if found["damage"]:
        hole = found["damage"]
        behind = hole["groups_behind"]
        rows += [
            f"proof: {hole['proof']}",
            f"behind the hole stand {behind:,} whole groups" if behind else "behind the hole stands no whole group",
            "what to do: copy the directory to a good disk; an I/O error may pass."
            if hole["unreadable"]
            else "what to do: keep a copy of the whole directory, check the disk and its memory, put the files back from a copy. "
            f"`tidelog serve --salvage` serves the positions before {hole['position']}; "
            "`tidelog repair --accept-loss` ends the log there.",
        ]
    return "\n".join(printable(row) for row in rows)


def comparison(found: Mapping[str, Any]) -> str:
    """What `tidelog verify --index` found: both digests, and at a difference what to do."""
    used = found["checkpoint_group"]
    rows = [
        f"{found['verdict']}: group {found['group']}, head {found['head']}",
        f"from the log alone:  {found['rebuilt']}",
        f"from the saved index, {f'a checkpoint at group {used}' if used else 'no checkpoint can be used'}:  "
        f"{found['saved'] or 'unreadable'}",
    ]
    if found["reason"]:
        rows.append(
            f"{found['reason']}: delete the folder index/, the next start makes a new one; the log is not concerned"
        )
    return "\n".join(printable(row) for row in rows)


def _verdict(found: Mapping[str, Any]) -> str:
    if found["damage"]:
        hole = found["damage"]
        return f"segment {hole['segment']}, offset {hole['offset']}, group {hole['group']}, position {hole['position']}"
    if found["tail"]:
        tail = found["tail"]
        return (
            f"{tail['bytes']} bytes at offset {tail['offset']} of segment {tail['segment']} were never acknowledged; "
            "a start cuts them and keeps them in quarantine/"
        )
    return "stopped cleanly" if found["clean_stop"] else "whole"


def repaired(found: Mapping[str, Any], plans: Sequence[str], done: Sequence[str]) -> str:
    """What `tidelog repair` did, or would do."""
    if done:
        return "\n".join([*map(printable, done), survey(found)])
    if not plans:
        return survey(found) + "\nnothing to repair"
    return "\n".join([survey(found), *(f"repair would: {printable(plan)}" for plan in plans)])
