"""Sessions, cursors and leases behind a kill (T-23, T-39, T-40): by a checkpoint, by the log alone, behind a base; and logs that
nobody wrote so, which are damage, never served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from zlib import crc32

import pytest
from sessions.model import Move
from sessions.ondisk import RESULTS_MAX, OnDisk, Run, same, ways
from support.builders import HEADER, control_batch, event_batch, seeded_random
from support.independent import reader
from support.simdisk import Image, SimDisk
from tidelog.errors import CorruptLog
from tidelog_broker import store
from tidelog_broker.core import sessions
from tidelog_broker.core.checkpoint import CursorRow
from tidelog_broker.core.sessions import SessionImage
from tidelog_broker.store import Store
from tidelog_broker.verify import DAMAGED, survey
from truncate.driven import SMALL, without_index

SEEDS = 8
GROUPS = 40
ID = b"i" * 16


@pytest.fixture(autouse=True)
def _few_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some are older than those that are kept."""
    monkeypatch.setattr(sessions, "SESSION_RESULTS_MAX", RESULTS_MAX)
    monkeypatch.setattr(store, "SESSION_RESULTS_MAX", RESULTS_MAX)


# -- what a start finds


@pytest.mark.parametrize("seed", range(SEEDS))
def test_behind_every_group_all_ways_of_a_start_lead_to_the_same_sessions_and_cursors(seed: int) -> None:
    rnd = Random(seed)
    run = Run()
    bases = 0
    for number in range(GROUPS):
        run.group(rnd)
        event = rnd.randrange(10)
        if event < 2 and run.log.store.log.group:
            run.log.driven.save()
        elif event < 4:
            before = set(run.log.image)
            run.truncate(max(0, run.model.durable.head - rnd.choice([0, 5, 20])))
            bases += any(name.startswith("base-") for name in set(run.log.image) - before)
        elif event < 5:
            run.step(rnd)
            run.rollback()
        elif event < 6:
            run.again()
        run.holds()
        same(run, deep=number % 10 == 9)
    assert bases


def durable(store: Store) -> tuple[list[SessionImage], list[CursorRow]]:
    return store.known.sessions.images(), store.known.cursors.rows()


class Noted:
    """Groups of a log, and the sessions and cursors behind each."""

    def __init__(self, log: OnDisk) -> None:
        self.log = log
        self.behind = {0: durable(log.store)}

    def commit(self) -> None:
        self.log.commit()
        self.behind[self.log.store.log.group] = durable(self.log.store)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_before_any_call_of_a_group_leaves_the_serials_before_it_or_behind_it(seed: int) -> None:
    rnd = Random(seed)
    run = Run()
    groups = run.groups = Noted(run.log)
    images: list[Image] = []
    disk = run.log.driven.sim
    for number in range(25):
        if number == 12:
            run.truncate()
            groups.behind[run.log.store.log.group] = durable(run.log.store)
        begun = run.log.store.log.group
        disk.before = lambda op, name: images.append(disk.image())
        run.group(rnd)
        disk.before = None
        assert len(images) >= 2 * (run.log.store.log.group - begun)
        for image in images:
            found = Store(SimDisk(image), SMALL, seeded_random(b"kill"), run.log.driven.indexed)
            assert begun <= found.log.group <= run.log.store.log.group
            assert durable(found) == groups.behind[found.log.group]
            found.log.abandon()
        images.clear()
    assert len(groups.behind) > 15


def test_results_are_told_at_any_distance_of_other_events_kills_and_truncations() -> None:
    """T-23: the id window forgot them a hundred times; the log or the base tells the places."""
    run = Run()
    run.open_as("p")
    first = [run.new("a/1", 3, False), run.new("plain", 1, False)]
    assert run.send(("p", 1, 1), None, tuple(first)).code == 0
    run.settle()
    for _ in range(3):
        run.others(60)
        run.log.driven.save()
        run.again()
        run.truncate()
        run.others(20)
        assert not any(name.startswith("0000000001-") for name in run.log.image)
        for _, image in ways(run.log.image):
            found = run.found(image)
            answer = found.send(("p", 1, 1), None, tuple(first))
            assert answer.rest == (3, 0, 2, 0, 2, 3, 3, 0, 0)
            other = found.send(("p", 1, 1), None, (first[0],))
            assert other.code == 16
            assert not found.log.appender.parts
    assert run.model.now.head > 200


def test_results_older_than_those_that_are_kept_have_no_places_behind_a_base_either() -> None:
    run = Run()
    run.open_as("p")
    writes = [run.new("a/1") for _ in range(RESULTS_MAX + 5)]
    for serial, write in enumerate(writes, 1):
        run.send(("p", 1, serial), None, (write,))
        run.settle()
    run.others(60)
    for _ in range(2):
        same(run)
        for _, image in ways(run.log.image):
            found = run.found(image)
            told = [found.send(("p", 1, serial), None, (write,)).rest[1] for serial, write in enumerate(writes, 1)]
            assert told == [*[None] * 5, *range(5, RESULTS_MAX + 5)]
        run.truncate()


def test_idle_sessions_and_cursors_stay_through_many_checkpoints_and_bases() -> None:
    """T-39, T-40: nobody uses them any more, and nothing but their own records is behind them."""
    run = Run()
    for name in ("p", "q"):
        run.open_as(name)
        run.open_as(name)
    run.send(("p", 2, 1), None, (run.new("a/1"),))
    run.move(Move("c", None, 3, None, ID))
    run.take("d", 0, None, "me")
    run.settle()
    known = [run.log.store.known.sessions.images(), run.log.store.known.cursors.rows()]
    for _ in range(4):
        run.others(50)
        run.truncate()
        run.again()
        assert [run.log.store.known.sessions.images(), run.log.store.known.cursors.rows()] == known
        run.holds()
        same(run)
    assert run.send(("q", 1, 1), None, (run.new("a/1"),)).code == 14
    assert run.send(("q", 2, 1), None, (run.new("a/1"),)).code == 0


def test_a_log_with_more_sessions_and_cursors_than_are_allowed_now_opens_and_takes_no_more() -> None:
    run = Run()
    for name in "pqr":
        run.open_as(name)
        run.move(Move(f"c{name}", None, 1, None))
        run.settle()
    less = store.IndexSettings(id_window_events=8, sessions_max=1, cursors_max=1)
    found = Store(SimDisk(run.log.image), SMALL, seeded_random(b"less"), less)
    assert sorted(found.known.sessions.by_name) == ["p", "q", "r"]
    assert len(found.known.cursors.by_name) == 3


# -- logs that can't be


def written(groups: Sequence[Sequence[bytes]]) -> Image:
    """A log of these groups, each with right checksums."""
    disk = SimDisk()
    log = Store(disk, SMALL, seeded_random(b"wrong")).log
    position = 0
    for batches in groups:
        position += sum(int.from_bytes(batch[16:20], "little") for batch in batches)
        log.commit(list(batches), len(batches), position)
    return disk.image()


def opening(name: object = "s", epoch: object = 1) -> bytes:
    return control_batch(1, [name, epoch])


def event(
    position: int, session: tuple[str, int, int] | None, *, index: int = 0, count: int = 1, stream: str = "a"
) -> bytes:
    first = position if stream == "a" else 0
    return event_batch(stream, first, position, [b"x"], index=index, count=count, session=session)


def cursor(*body: object, index: int = 0, count: int = 1) -> bytes:
    return control_batch(2, list(body), index=index, count=count)


def lease(*body: object) -> bytes:
    return control_batch(3, list(body))


S1, S2 = event(0, ("s", 1, 1)), event(1, ("s", 1, 2))


def with_session_bytes(stored: bytes) -> bytes:
    """A batch with any bytes where its session belongs, its checksum right."""

    good = bytearray(event(0, None))
    region = good[HEADER.size + 1 : -4]
    good[1] = 2
    good[4:8] = (HEADER.size + 1 + len(stored) + len(region) + 4).to_bytes(4, "little")
    body = bytes(good[: HEADER.size + 1]) + stored + bytes(region)
    return body + crc32(body).to_bytes(4, "little")


RIGHT: dict[str, list[list[bytes]]] = {
    "two appends": [[opening()], [S1], [S2]],
    "in one group": [[opening(), S1, S2]],
    "opened again": [[opening(), S1], [opening(epoch=2), event(1, ("s", 2, 2))]],
    "an append of two batches": [
        [opening(), event(0, ("s", 1, 1), count=2), event(1, ("s", 1, 1), index=1, count=2, stream="b")]
    ],
    "an append and its cursor": [
        [opening(), event(0, ("s", 1, 1), count=2), cursor("c", 1, None, 0, index=1, count=2)]
    ],
    "a cursor and its lease": [[cursor("c", 1, None, 0, ID), lease("c", "me", 1), cursor("c", 2, "me", 1, ID)]],
    "fields of a later writer": [[control_batch(1, ["s", 1, "more"]), S1, lease("c", "me", 1, "more")]],
}
WRONG: dict[str, list[list[bytes]]] = {
    "a serial twice": [[opening(), S1], [event(1, ("s", 1, 1))]],
    "a serial twice in a group": [[opening(), S1, event(1, ("s", 1, 1))]],
    "a serial that skips": [[opening(), S1], [event(1, ("s", 1, 3))]],
    "serial 0": [[opening(), event(0, ("s", 1, 0))]],
    "a first serial of 2": [[opening(), event(0, ("s", 1, 2))]],
    "a serial of 2^64-1": [[opening(), event(0, ("s", 1, 2**64 - 1))]],
    "a session that was never opened": [[S1]],
    "another one's session": [[opening("t"), S1]],
    "opened behind its append": [[S1, opening()]],
    "an older epoch": [[opening(), opening(epoch=2), S1]],
    "an epoch that was never given": [[opening(), event(0, ("s", 2, 1))]],
    "an epoch that goes back": [[opening(), opening(epoch=2)], [opening(epoch=1)]],
    "an epoch twice": [[opening()], [opening()]],
    "an epoch that skips": [[opening()], [opening(epoch=3)]],
    "a first epoch of 0": [[opening(epoch=0)]],
    "a first epoch of 2": [[opening(epoch=2)]],
    "an epoch that is true": [[opening(epoch=True)]],
    "an epoch that is a float": [[opening(epoch=1.0)]],
    "an epoch that is a str": [[opening(epoch="1")]],
    "no epoch": [[control_batch(1, ["s"])]],
    "a session without a name": [[opening("")]],
    "a session's name that is bytes": [[opening(b"s")]],
    "a session's name of 256 bytes": [[opening("s" * 256)]],
    "a session's name with a control character": [[opening("s\x01")]],
    "a session's record that is a map": [[control_batch(1, {"s": 1, 1: 1})]],  # type: ignore[arg-type]
    "two sessions in an append": [
        [opening(), opening("t"), event(0, ("s", 1, 1), count=2), event(1, ("t", 1, 1), index=1, count=2, stream="b")]
    ],
    "two serials in an append": [
        [opening(), event(0, ("s", 1, 1), count=2), event(1, ("s", 1, 2), index=1, count=2, stream="b")]
    ],
    "a session in the second batch alone": [
        [opening(), event(0, None, count=2), event(1, ("s", 1, 1), index=1, count=2, stream="b")]
    ],
    "a session in the first batch alone": [
        [opening(), event(0, ("s", 1, 1), count=2), event(1, None, index=1, count=2, stream="b")]
    ],
    "no bytes of a session": [[opening(), with_session_bytes(b"")]],
    "a session without its serial": [[opening(), with_session_bytes(b"\1s" + bytes(8))]],
    "a session with a byte more": [[opening(), with_session_bytes(b"\1s" + bytes(17))]],
    "a session's name that is longer than what is there": [[opening(), with_session_bytes(b"\xffs" + bytes(16))]],
    "a session's name that is no UTF-8": [[opening(), with_session_bytes(b"\1\xff" + bytes(16))]],
    "a session of no name": [[opening(), with_session_bytes(b"\0" + bytes(16))]],
    "a cursor at a str": [[cursor("c", "1", None, 0)]],
    "a cursor at nil": [[cursor("c", None, None, 0)]],
    "a cursor at true": [[cursor("c", True, None, 0)]],
    "a cursor at -1": [[cursor("c", -1, None, 0)]],
    "a cursor at 2^63": [[cursor("c", 2**63, None, 0)]],
    "a cursor of three fields": [[cursor("c", 1, None)]],
    "a cursor without a name": [[cursor("", 1, None, 0)]],
    "a cursor's name that is an array": [[cursor(["c"], 1, None, 0)]],
    "a cursor's name of 256 bytes": [[cursor("c" * 256, 1, None, 0)]],
    "a cursor held by a number": [[cursor("c", 1, 7, 1)]],
    "a cursor held by 0": [[cursor("c", 1, 0, 1)]],
    "a cursor held by false": [[cursor("c", 1, False, 1)]],
    "a cursor held by no bytes": [[cursor("c", 1, b"", 1)]],
    "a lease number of -1": [[cursor("c", 1, None, -1)]],
    "a lease number that is nil": [[cursor("c", 1, None, None)]],
    "a commit's id of 15 bytes": [[cursor("c", 1, None, 0, ID[1:])]],
    "a commit's id that is a str": [[cursor("c", 1, None, 0, "i" * 16)]],
    "a lease that goes back": [[lease("c", "me", 2), lease("c", "you", 1)]],
    "a cursor's lease that goes back": [[lease("c", "me", 2)], [cursor("c", 1, "me", 1)]],
    "a lease of two fields": [[lease("c", "me")]],
    "a lease held by an array": [[lease("c", ["me"], 1)]],
    "a lease held by 0": [[lease("c", 0, 1)]],
    "a lease of 2^63": [[lease("c", "me", 2**63)]],
    "a lease that is a str": [[control_batch(3, "cme")]],  # type: ignore[arg-type]
    "a cursor before the events of its append": [
        [event(0, None)],
        [cursor("c", 1, None, 0, count=2), event(1, None, index=1, count=2)],
    ],
    "two cursors in an append": [
        [
            event(0, None, count=3),
            cursor("c", 1, None, 0, index=1, count=3),
            cursor("d", 1, None, 0, index=2, count=3),
        ]
    ],
}


@pytest.mark.parametrize("what", RIGHT)
def test_these_logs_are_right(what: str, tmp_path: Path) -> None:
    image = written(RIGHT[what])
    found = Store(SimDisk(image), SMALL, seeded_random(b"start"))
    assert read_apart(image, tmp_path) == known_of(found)


@pytest.mark.parametrize("what", WRONG)
def test_what_no_writer_can_have_written_is_damage_though_its_checksums_are_right(what: str, tmp_path: Path) -> None:
    image = written(WRONG[what])
    disk = SimDisk(image)
    with pytest.raises(CorruptLog):
        Store(disk, SMALL, seeded_random(b"start"))
    assert disk.image() == image
    assert survey(SimDisk(image), SMALL).verdict == DAMAGED
    with pytest.raises(AssertionError, match="DAMAGED"):
        read_apart(image, tmp_path)


# -- by the reader that shares no code

Known = tuple[dict[str, tuple[int, int]], dict[str, tuple[int | None, str | None, int]]]
"""Sessions: epoch and last serial; cursors: position, holder, lease."""


def read_apart(image: Image, folder: Path) -> Known:
    """What the independent reader finds, which must be whole."""
    for name, data in without_index(image).items():
        (folder / name).write_bytes(data)
    found = reader.Reader(folder)
    for _ in found.walk():
        pass
    assert str(found.verdict) == "whole"
    return found.sessions, found.cursors


def known_of(store: Store) -> Known:
    sessions, cursors = store.known.sessions.images(), store.known.cursors.rows()
    return (
        {image.name: (image.epoch, image.last) for image in sessions},
        {name: (cursor.position, cursor.holder or None, cursor.lease) for name, cursor in cursors},
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_reader_that_shares_no_code_finds_the_same_sessions_and_cursors(seed: int, tmp_path: Path) -> None:
    rnd = Random(f"apart {seed}")
    run = Run()
    bases = 0
    for number in range(30):
        run.group(rnd)
        run.others(4)
        if number % 7 == 6:
            run.truncate(max(0, run.model.durable.head - 8))
        folder = tmp_path / str(number)
        folder.mkdir()
        image = run.log.image
        bases += any(name.startswith("base-") for name in image)
        assert read_apart(image, folder) == known_of(run.log.store)
    assert bases
