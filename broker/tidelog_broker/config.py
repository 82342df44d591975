"""Settings of a broker: flags, TIDELOG_… and one TOML file, each wrong value refused by name before anything is opened."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidelog import limits

from .core.appender import AppendLimits
from .core.index import STREAMS_CACHED
from .log import LogSettings
from .store import IndexSettings

MIB = 1 << 20


class WrongSetting(ValueError):
    """A setting has a value that can't be used; names it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One number with its bounds; `unit` is for people."""

    name: str
    default: int
    minimum: int
    maximum: int
    unit: str
    help: str


NUMBERS = [
    Setting("segment_bytes", 256 * MIB, MIB, 1024 * MIB, "bytes", "where a new segment ends"),
    Setting("group_bytes_max", limits.GROUP_BYTES_MAX, MIB, limits.GROUP_BYTES_MAX, "bytes", "largest group"),
    Setting("zero_step", MIB, 4096, 16 * MIB, "bytes", "space prepared in one step"),
    Setting("prepare_ahead", 8 * MIB, 4096, 256 * MIB, "bytes", "space kept prepared"),
    Setting("align", 1, 1, 4_096, "bytes", "every group begins on a multiple of this"),
    Setting("event_bytes_max", limits.EVENT_BYTES_MAX, 64, limits.EVENT_BYTES_CEILING, "bytes", "largest event"),
    Setting("append_events_max", limits.APPEND_EVENTS_MAX, 1, limits.APPEND_EVENTS_CEILING, "events", "most events in an append"),
    Setting("append_bytes_max", limits.APPEND_BYTES_MAX, 64, limits.APPEND_BYTES_CEILING, "bytes", "largest append"),
    Setting("id_window_events", limits.ID_WINDOW_EVENTS, limits.ID_WINDOW_EVENTS, 64 * MIB, "events", "event ids remembered"),
    Setting("streams_cached", STREAMS_CACHED, 1_024, 1 << 24, "streams", "streams kept in memory, twice; others cost a read"),
    Setting("sessions_max", limits.SESSIONS_MAX, 1, 1 << 20, "sessions", "most sessions, each up to 64 KiB of memory"),
    Setting("cursors_max", limits.CURSORS_MAX, 1, 1 << 20, "cursors", "most cursors"),
    Setting("checkpoint_batches", 1 << 17, 1_024, 1 << 22, "batches", "the index is saved after so many"),
    Setting("checkpoint_seconds", 300, 1, 86_400, "s", "and after this time, if anything was appended"),
    Setting("heartbeat_ms", 500, 10, 60_000, "ms", "time between heartbeats"),
    Setting("queue_messages_max", 256, 1, 65_536, "messages", "messages queued per connection and direction"),
    Setting("message_bytes_max", limits.MESSAGE_BYTES_MAX, 2 * MIB, 64 * MIB, "bytes", "largest message taken"),
    Setting("idle_mark_ms", 50, 1, 3_600_000, "ms", "an idle log gets its mark after this"),
    Setting("mark_groups", 64, 1, 64, "groups", "a mark at least every so many groups"),
]  # fmt: skip
FLAGS = {
    "strict": "write a mark before every acknowledgement",
    "accept_missing_mark": "start although no mark is readable",
    "salvage": "serve what is good of a damaged log, read-only, and change nothing",
    "accept_file_system": "start although the file system is nfs, cifs, fuse or the like",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A checked configuration."""

    data: Path
    bind: tuple[str, ...]
    numbers: Mapping[str, int]
    flags: Mapping[str, bool]

    @property
    def index_settings(self) -> IndexSettings:
        return IndexSettings(
            id_window_events=self.numbers["id_window_events"],
            streams_cached=self.numbers["streams_cached"],
            tail_batches=self.numbers["checkpoint_batches"],
            sessions_max=self.numbers["sessions_max"],
            cursors_max=self.numbers["cursors_max"],
        )

    @property
    def checkpoint_seconds(self) -> int:
        return self.numbers["checkpoint_seconds"]

    @property
    def heartbeat_ms(self) -> int:
        return self.numbers["heartbeat_ms"]

    @property
    def idle_mark_ms(self) -> int:
        return self.numbers["idle_mark_ms"]

    @property
    def queue_messages_max(self) -> int:
        return self.numbers["queue_messages_max"]

    @property
    def message_bytes_max(self) -> int:
        return self.numbers["message_bytes_max"]

    @property
    def append_limits(self) -> AppendLimits:
        names = ("event_bytes_max", "append_events_max", "append_bytes_max", "id_window_events")
        return AppendLimits(**{name: self.numbers[name] for name in names})

    @property
    def log_settings(self) -> LogSettings:
        names = ("segment_bytes", "group_bytes_max", "zero_step", "prepare_ahead", "align", "mark_groups")
        return LogSettings(
            **{name: self.numbers[name] for name in names},
            strict=self.flags["strict"],
            accept_missing_mark=self.flags["accept_missing_mark"],
        )


def load_config(
    data: str | None, bind: tuple[str, ...], given: Mapping[str, Any], file: str | None, environment: Mapping[str, str]
) -> Config:
    """Flags before environment before file before defaults. Raises WrongSetting."""
    rows = _read_file(file or environment.get("TIDELOG_CONFIG"))
    unknown = set(rows) - {setting.name for setting in NUMBERS} - set(FLAGS) - {"data", "bind"}
    if unknown:
        raise WrongSetting(f"{min(unknown)}: there is no setting of this name")
    directory = data or environment.get("TIDELOG_DATA") or rows.get("data")
    if not directory or not isinstance(directory, str):
        raise WrongSetting("data: say where the log is, with --data DIR")
    addresses: Any = bind or tuple(filter(None, environment.get("TIDELOG_BIND", "").split(","))) or rows.get("bind", ())
    if isinstance(addresses, str):
        addresses = (addresses,)
    if not isinstance(addresses, list | tuple) or not all(isinstance(address, str) for address in addresses):
        raise WrongSetting("bind: an endpoint or a list of endpoints")
    numbers = {}
    for setting in NUMBERS:
        value = _first(
            given.get(setting.name), environment.get(f"TIDELOG_{setting.name.upper()}"), rows.get(setting.name)
        )
        numbers[setting.name] = setting.default if value is None else _number(setting, value)
    if numbers["align"] & (numbers["align"] - 1):
        raise WrongSetting(f"align: {numbers['align']} is not a power of two")
    least = numbers["append_bytes_max"] + MIB
    if numbers["message_bytes_max"] < least:
        raise WrongSetting(
            f"message_bytes_max: {numbers['message_bytes_max']} is too small for appends of {numbers['append_bytes_max']} "
            f"bytes (append_bytes_max): at least {least}"
        )
    flags = {}
    for name in FLAGS:
        value = _first(given.get(name) or None, environment.get(f"TIDELOG_{name.upper()}"), rows.get(name))
        flags[name] = value is not None and _flag(name, value)
    return Config(data=Path(directory), bind=tuple(addresses), numbers=numbers, flags=flags)


def _read_file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise WrongSetting(f"config: {path}: {os.strerror(error.errno or 0)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongSetting(f"config: {path}: {error}") from None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _number(setting: Setting, value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if type(number) is not int or not setting.minimum <= number <= setting.maximum:
        raise WrongSetting(
            f"{setting.name}: {value!r} is not a number of {setting.unit} from {setting.minimum} to {setting.maximum}"
        )
    return number


def _flag(name: str, value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    known = words.get(value.lower()) if isinstance(value, str) else value
    if type(known) is not bool:
        raise WrongSetting(f"{name}: {value!r} is neither true nor false")
    return known
