"""The log and its index together: opened, read back.

Owns nothing of its own; joins log.py (bytes) and core.index (meaning) at start and for the few reads that the rules of
append need.
"""

from __future__ import annotations

import errno
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from zlib import crc32

from tidelog.batch import EVENTS, HEADER, HEADER_BYTES, Batch, Incomplete, read_batch
from tidelog.errors import CorruptLog
from tidelog.limits import CURSORS_MAX, ID_WINDOW_EVENTS, SESSION_RESULTS_MAX, SESSIONS_MAX
from tidelog.wire import CRC_RESIDUE

from . import checkpoints
from .checkpoints import RunFile
from .core.base import CURSORS, SESSIONS, Base, BaseReader, KeptAppend, KeptWrite, base_name, kept_writes
from .core.checkpoint import Checkpoint
from .core.cursors import Cursor, Cursors
from .core.idwindow import IdWindow
from .core.index import OFFSET_MASK, PLACE_SHIFT, STREAMS_CACHED, Index, Tail
from .core.known import Known
from .core.merging import base_rows, merge_runs, to_merge, weight, write_base_run, write_tail
from .core.recovery import Group
from .core.replay import replay
from .core.run import BadIndex, Put, Run
from .core.sessions import SessionImage, Sessions
from .disk import Disk
from .files import Replay, Since
from .log import Log, LogSettings
from .opening import opening_failed


class _Witnesses:
    """Checkpoints as witnesses only: they name groups that were durable, and the log is read from its beginning."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def named(self, log_id: bytes) -> dict[str, int]:
        return self._store.named(log_id)

    def points(self, log_id: bytes) -> Iterator[Since]:
        return iter(())

    def begin(self, base: BaseReader | None) -> None:
        self._store.begin(base)

    def take(self, since: Since, base: BaseReader | None) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """How much of the index is in memory: events in the id window, streams in each of two generations, batches that are not
    in a run yet before they become one, sessions and cursors."""

    id_window_events: int = ID_WINDOW_EVENTS
    streams_cached: int = STREAMS_CACHED
    tail_batches: int = 1 << 17
    sessions_max: int = SESSIONS_MAX
    cursors_max: int = CURSORS_MAX


class Store:
    """An open log with its index."""

    def __init__(
        self,
        disk: Disk,
        settings: LogSettings,
        random: Callable[[int], bytes],
        index_settings: IndexSettings | None = None,
        around: Callable[[Replay], Replay] = lambda replay: replay,
    ) -> None:
        """Raises what Log.open raises. `around` as for `inspect`."""
        self._open(disk, index_settings, lambda: Log.open(disk, settings, random, around(self._replay), self))
        self._log_id = self.log.log_id
        if self.spill_failed:
            self.log.report.warnings.append(self.spill_failed)
        elif self.index.runs and self.log.report.since == 0:
            try:
                self.checkpoint()
            except (OSError, BadIndex) as error:
                self.log.report.warnings.append(
                    f"the index could not be saved, so the next start is slow again: {error}"
                )

    @classmethod
    def inspect(
        cls,
        disk: Disk,
        settings: LogSettings,
        around: Callable[[Replay], Replay] = lambda replay: replay,
        until: int | None = None,
    ) -> Store:
        """A log that can only be read, as far as it is good (Log.inspect). `around` may look at each group, before and after it
        is taken into the index."""
        store = cls.__new__(cls)
        store._begin(disk, None, spills=False)
        store.log = Log.inspect(disk, settings, around(store._replay), until, _Witnesses(store))
        return store

    @classmethod
    def behind_checkpoint(cls, disk: Disk, settings: LogSettings, index_settings: IndexSettings, until: int) -> Store:
        """The log of a running broker up to a durable group, read from its newest checkpoint on: what the next one needs.

        Raises CorruptLog, InvalidHeader, OSError.
        """
        store = cls.__new__(cls)

        def replay(ordinal: int, group: Group) -> None:
            # The running broker has judged these groups: a new run needs no look into the older ones.
            store.index.recalls = False
            store._replay(ordinal, group)

        store._open(disk, index_settings, lambda: Log.inspect(disk, settings, replay, until, store, cached=True))
        store.index.recalls = True
        if store.log.damage is not None:
            raise store.log.damage
        return store

    def _open(self, disk: Disk, index_settings: IndexSettings | None, opening: Callable[[], Log]) -> None:
        """Open the log behind the newest checkpoint; when that turns out to be damaged meanwhile, all of it."""
        self._begin(disk, index_settings, spills=True)
        try:
            self.log = opening()
        except BadIndex as error:
            # Met while the groups behind it were read: nothing of the log was changed yet.
            try:
                checkpoints.forget(disk)
            except OSError as why:
                raise opening_failed(why) from why
            self._keep([])
            self._begin(disk, index_settings, spills=True)
            self.log = opening()
            self.log.report.warnings.append(f"the saved index is damaged ({error}), so the whole log was read")

    def _begin(self, disk: Disk, index_settings: IndexSettings | None, *, spills: bool) -> None:
        self.disk = disk
        self._settings = index_settings or IndexSettings()
        self._spills = spills
        self._runs: dict[str, RunFile] = {}
        self._points: dict[Since, Checkpoint] = {}
        self._log_id = b""
        self.checkpoint_group = 0
        self._base: BaseReader | None = None
        self.spill_failed = ""
        self.index_bytes_read = 0
        self._reset()

    def _reset(self) -> None:
        settings = self._settings
        self.index = Index(settings.streams_cached)
        self.known = Known.nothing(settings.id_window_events, settings.sessions_max, settings.cursors_max)
        self._told = 0

    @property
    def window(self) -> IdWindow:
        """The event ids that are known."""
        return self.known.window

    # -- the saved index (files.Saved)

    def named(self, log_id: bytes) -> dict[str, int]:
        """The groups that good checkpoints of this log name as durable."""
        return {name: saved.group for name, saved in checkpoints.good(self.disk) if saved.log_id == log_id}

    def points(self, log_id: bytes) -> Iterator[Since]:
        """The log points of good checkpoints, the newest first."""
        self._log_id = log_id
        for _, saved in checkpoints.good(self.disk):
            if saved.log_id == log_id and saved.window.events == self._settings.id_window_events:
                since = Since(saved.group, saved.tag, saved.ordinal, saved.at, saved.end, saved.head)
                self._points[since] = saved
                yield since

    def take(self, since: Since, base: BaseReader | None) -> bool:
        """The index and the id window from the checkpoint at a log point; False when a run of it can't be used."""
        try:
            self._load(self._points[since])
        except BadIndex:
            self._reset()
            return False
        if base is not None:
            self.index.base_number = base.base.number
            # What was truncated this index knows, or its record stands behind the checkpoint.
            self._tell(base)
        return True

    def begin(self, base: BaseReader | None) -> None:
        """The index and the id window behind the removed segments. Raises CorruptLog or InvalidHeader."""
        if base is None:
            return
        self._log_id = base.base.log_id
        self._tell(base)
        known = self.known
        window = known.window = IdWindow.from_base(base.base, (kept for kept in self._kept() if kept.ids))
        window.turns.insert(0, base.base.window_begins)  # the next base asks for it
        window.events = self._settings.id_window_events
        self._told = base.base.told
        rows: dict[str, list[list[Any]]] = {SESSIONS: [], CURSORS: []}
        for kind, row in base.rows():
            if kind in rows:
                rows[kind].append(row)
        known.sessions = Sessions(self._settings.sessions_max, (SessionImage(*row) for row in rows[SESSIONS]))
        known.cursors = Cursors(
            self._settings.cursors_max, ((row[0], Cursor(row[1], row[2] or "", *row[3:])) for row in rows[CURSORS])
        )
        number = base.base.number
        write = partial(write_base_run, base)
        run: Run | None = None
        if self._spills:
            try:
                made = checkpoints.write_run(
                    self.disk, number, number, self._log_id, lambda put: write(put, self._log_id)
                )
                self._runs = {made.name: made}
                run = made
            except OSError as error:
                self._no_spills(error)
        if run is None:
            run = _run_in_memory(lambda put: write(put, self._log_id), self._log_id)
        index = self.index
        index.adopt([run])
        index.stream_count = run.streams
        index.base_number = number
        index.recorded_at = base.base.recorded_at
        # A truncation that reaches further stands in a segment that is still there.
        index.first_position, index.first_number = base.base.head, number

    def _tell(self, base: BaseReader) -> None:
        """From here on this base tells of removed appends."""
        self._base = base

    def _kept(self) -> Iterator[KeptAppend]:
        """The removed appends that may be asked for again, in log order. Raises CorruptLog."""
        try:
            yield from self._base.kept() if self._base else ()
        except OSError as error:
            raise self._unreadable(error) from error

    def _kept_append(self, number: int) -> KeptAppend | None:
        """One of them. Raises CorruptLog."""
        try:
            return self._base.find(number) if self._base else None
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> CorruptLog:
        return CorruptLog(f"the base can't be read: {error}", self._base.name if self._base else "", 0)

    def _load(self, saved: Checkpoint) -> None:
        runs = checkpoints.open_runs(self.disk, saved, self._runs)
        self._keep(runs)
        self.index_bytes_read = sum(run.directory_bytes for run in runs) + checkpoints.size(self.disk, saved)
        index = self.index
        index.adopt(list(runs))
        index.recorded_at, index.stream_count = saved.recorded_at, saved.stream_count
        index.first_position, index.first_number = saved.first_position, saved.first_number
        settings = self._settings
        self.known = Known(
            IdWindow.from_image(saved.window), Sessions(settings.sessions_max, saved.sessions),
            Cursors(settings.cursors_max, saved.cursors),
        )  # fmt: skip
        self.checkpoint_group = saved.group

    def _keep(self, runs: list[RunFile]) -> None:
        """These runs are in use, others no longer."""
        kept = {run.name: run for run in runs}
        for name, run in self._runs.items():
            if kept.get(name) is not run:
                run.close()
        self._runs = kept

    # -- checkpoints

    def checkpoint(self, *, merge: bool = True) -> None:
        """Save the index as it is; nothing may be staged. Raises OSError: then the older checkpoints count."""
        index, point = self.index, self.log.point()
        if point.group == 0:
            return
        if len(index.runs) != len(self._runs):
            raise OSError(errno.ENOSPC, "a part of the index found no room at the start")
        if index.tail.positions:
            index.freeze()
        for tail in list(index.frozen):
            self._save(tail)
        runs = list(self._runs.values())
        while merge and (count := to_merge([weight(run) for run in runs])):
            runs[-count:] = [self._merge(runs[-count:])]
        checkpoints.write(
            self.disk,
            Checkpoint(
                log_id=self.log.log_id, group=point.group, tag=point.tag, ordinal=point.ordinal, at=point.at, end=point.end,
                head=point.head, number=index.stop, recorded_at=index.recorded_at, stream_count=index.stream_count,
                first_position=index.first_position, first_number=index.first_number,
                sessions=tuple(self.known.sessions.images()), cursors=tuple(self.known.cursors.rows()),
                runs=tuple(checkpoints.run_name(run) for run in runs), window=self.known.window.image(),
            ),
        )  # fmt: skip
        self._use(runs)
        self.checkpoint_group = point.group
        checkpoints.sweep(self.disk, self.log.log_id)

    def _spill(self) -> None:
        """While a whole log is read, what is in memory becomes a run; where there is no room for one it stays in memory."""
        try:
            self._save(self.index.freeze())
        except OSError as error:
            self._no_spills(error)

    def _no_spills(self, error: OSError) -> None:
        self._spills = False
        self.spill_failed = f"no room for the index, so it is kept in memory: {error}"

    def _save(self, tail: Tail) -> None:
        """A frozen tail becomes a run. Raises OSError."""
        run = checkpoints.write_run(
            self.disk, tail.first, tail.stop, self._log_id, lambda put: write_tail(tail, put, self._log_id)
        )
        self._use([*self._runs.values(), run])

    def _merge(self, runs: list[RunFile]) -> RunFile:
        first, stop, log_id, base_number = runs[0].first, runs[-1].stop, self._log_id, self.index.base_number
        return checkpoints.write_run(
            self.disk, first, stop, log_id, lambda put: merge_runs(runs, put, log_id, base_number)
        )

    def _use(self, runs: list[RunFile]) -> None:
        self.index.adopt(list(runs))
        self._keep(runs)

    def adopt(self, group: int) -> None:
        """Go on with the checkpoint that another process wrote at a group. Raises BadIndex."""
        saved = checkpoints.read(self.disk, checkpoints.name_of(group))
        if saved.log_id != self.log.log_id or saved.group != group:
            raise BadIndex(f"{checkpoints.name_of(group)} is another's")
        self._use(checkpoints.open_runs(self.disk, saved, self._runs))
        self.checkpoint_group = group

    # -- replay

    def _replay(self, ordinal: int, group: Group) -> None:
        """One recovered group into the index. Raises CorruptLog or InvalidHeader."""
        replay(self.index, self.known, ordinal, group, self._told)
        if self._spills and len(self.index.tail.positions) >= self._settings.tail_batches:
            self._spill()

    # -- the base

    def write_base(self, ordinal: int) -> None:
        """Write what the segments up to this one can no longer tell once they are gone; durable when this returns.

        Everything in memory must be in runs. Raises CorruptLog or OSError.
        """
        index, header = self.index, self.log.segment_header(ordinal + 1)
        number = index.number_at(header.first_position) if header.first_position < index.head else index.stop
        window = self.known.window
        begins, young_begins = window.turned_before(header.first_position)
        base = Base(
            log_id=self._log_id, group=header.first_group - 1, tag=header.previous_tag, ordinal=ordinal,
            head=header.first_position, number=number, first_position=index.first_position,
            recorded_at=index.recorded_at, window_events=window.events, window_begins=begins,
            window_young_begins=young_begins,
            told=self.log.group if self.known.sessions.by_name or self.known.cursors.by_name else 0,
        )  # fmt: skip
        try:
            rows = chain(base_rows(index.runs, number), self._sessions_and_cursors())
            checkpoints.write_base(self.disk, base, self._appends_before(number), rows)
        except (OSError, CorruptLog):
            self._drop(checkpoints.temporary(base_name(base.group)))
            raise

    def _drop(self, name: str) -> None:
        """A base that is of no use takes no room. Raises OSError."""
        if name in self.disk.names():
            self.disk.unlink(name)
            self.disk.sync_folder()

    def _sessions_and_cursors(self) -> Iterator[tuple[str, list[Any]]]:
        for image in self.known.sessions.images():
            yield SESSIONS, list(image)
        for name, (position, holder, lease, commit) in self.known.cursors.rows():
            yield CURSORS, [name, position, holder or None, lease, commit]

    def _appends_before(self, number: int) -> Iterator[KeptAppend]:
        """The appends before a batch that may be asked for again: those of the id window, and the results of sessions."""
        ids: dict[int, list[bytes]] = {}
        for generation in (self.known.window.old, self.known.window.young):
            for event_id, append in generation.items():
                if append < number:
                    ids.setdefault(append, []).append(event_id)
        wanted = array("Q", ids)
        for session in self.known.sessions.by_name.values():
            wanted.extend(append for append in session.numbers[-SESSION_RESULTS_MAX:] if append < number)
        told = self._kept()
        kept = next(told, None)
        before = -1
        for append in sorted(wanted):
            if append == before:
                continue
            before = append
            while kept is not None and kept.number < append:
                kept = next(told, None)
            here = kept is not None and kept.number == append
            writes = kept.writes if here and kept is not None else kept_writes(self.append(append))
            yield KeptAppend(append, b"".join(ids.get(append, ())), writes)

    def use_base(self) -> None:
        """Go on with the base that another process wrote. Raises CorruptLog or OSError."""
        base = self.log.use_base()
        self._tell(base)
        self.index.base_number = base.base.number
        self.log.remove_told()

    def original(self, number: int) -> tuple[KeptWrite, ...]:
        """What a repeat of the append that begins with batch `number` is compared with and answered by. Raises CorruptLog."""
        kept = self._kept_append(number) if number < self.index.base_number else None
        return kept.writes if kept is not None else kept_writes(self.append(number))

    def append(self, number: int) -> list[Batch]:
        """The event batches of the append that begins with batch `number`, read from the log and checked."""
        return [self.batch(at) for at in range(number, self.index.append_stop(number))]

    def batch(self, number: int) -> Batch:
        """One batch, read from the log and checked. Raises CorruptLog."""
        place, length = self._extent(number)
        ordinal, offset = place >> PLACE_SHIFT, place & OFFSET_MASK
        try:
            return self._whole(read_batch(self.log.read(ordinal, offset, length)), place)
        except CorruptLog:
            raise self.log.rot(ordinal, offset, f"position {self.index.position_of(number)} can't be read") from None

    def checked(self, extents: list[tuple[int, int, int]]) -> tuple[bytes, CorruptLog | None]:
        """The batches of a page, each looked at, and what is wrong between them (they can be read all the same).

        Raises CorruptLog with the segment and the offset of the first bad batch.
        """
        parts: list[memoryview] = []
        between: CorruptLog | None = None
        for ordinal, offset, size in extents:
            data = memoryview(self.log.read(ordinal, offset, size))
            edge = 0
            for start, length, position in self._batches_in(ordinal << PLACE_SHIFT | offset, size):
                piece = data[start : start + length]
                header = HEADER.unpack_from(piece)
                # The right checksum at the wrong place would be a write that went astray.
                is_it = (header[0], header[4], header[9]) == (EVENTS, length, position)
                if not is_it or crc32(piece) != CRC_RESIDUE:
                    raise self.log.rot(ordinal, offset + start, f"position {position} can't be read")
                if (
                    start > edge
                    and between is None
                    and not self.log.is_between(ordinal, offset + edge, data[edge:start])
                ):
                    between = self.log.rot(ordinal, offset + edge, "no group header stands between its batches")
                parts.append(piece)
                edge = start + length
        return b"".join(parts), between

    def _batches_in(self, place: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(offset behind `place`, length, first position) of the batches in an extent."""
        for rows in self.index.rows_from(place):
            for row in range(bisect_left(rows.places, place), len(rows.places)):
                if rows.places[row] >= place + size:
                    return
                yield rows.places[row] - place, rows.lengths[row], rows.positions[row]

    def _extent(self, number: int) -> tuple[int, int]:
        """(place, length) of a batch."""
        rows = self.index.rows(number)
        return rows.places[number - rows.first], rows.lengths[number - rows.first]

    def _whole(self, batch: Batch | Incomplete, place: int) -> Batch:
        if isinstance(batch, Incomplete):
            raise self.log.rot(place >> PLACE_SHIFT, place & OFFSET_MASK, "the batch is cut off")
        return batch

    def recorded_at(self, number: int, checked: bool = False) -> int:
        """When a batch was recorded, from its header alone, or from all of it, `checked`. Raises CorruptLog."""
        if checked:
            return self.batch(number).recorded_at
        place, _ = self._extent(number)
        header = self.log.read(place >> PLACE_SHIFT, place & OFFSET_MASK, HEADER_BYTES)
        return int(HEADER.unpack(header)[11])

    def read(self, extents: list[tuple[int, int, int]]) -> Iterator[bytes]:
        """The bytes of a page's extents."""
        for ordinal, offset, size in extents:
            yield self.log.read(ordinal, offset, size)


def _run_in_memory(write: Callable[[Put], bytes], log_id: bytes) -> Run:
    """A run that is in no file: what a log that is only looked at needs."""
    parts: list[bytes] = []
    write(parts.append)
    data = b"".join(parts)
    return Run("base", lambda offset, count: data[offset : offset + count], len(data), log_id)
