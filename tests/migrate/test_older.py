"""Older versions of our own format, migrated through a reader that is registered; a made-up version 0 stands for them (T-9)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from migrate.found import events, files
from migrate.seed import large
from support.command import Run, refusal
from tidelog.batch import Batch, read_batch, unpack_columns
from tidelog.errors import InvalidHeader
from tidelog_broker.disk import Disk, Locked, RealDisk
from tidelog_broker.migrate import migrate
from tidelog_broker.source import OLDER, Append, Torn
from tidelog_broker.staging import Unfit

SEED = large(3, events=2_000, streams=5)


class VersionZero:
    """Reads the made-up version 0: segments like those of version 1, but for the number in their headers."""

    kind = "Tidelog"
    version = 0
    has_times = True
    torn: Torn | None = None

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def appends(self) -> Iterator[Append]:
        name = next(name for name in self.disk.names() if name[0] == "0")
        file = self.disk.open(name)
        data = file.read(0, file.size())
        file.close()
        at, begins, rows = 4_096, 0, list[Any]()
        while data[at : at + 4] == b"TLGR":
            stop = at + 64 + int.from_bytes(data[at + 4 : at + 8], "little")
            at += 64
            while at < stop:
                batch = read_batch(data, at)
                assert isinstance(batch, Batch)
                if not batch.append_index:
                    begins, rows, position = at, [], batch.first_position
                for version, (kind, payload, metadata, id_) in enumerate(
                    unpack_columns(batch.region).rows(), batch.first_version
                ):
                    rows.append((batch.stream, version, id_, kind, metadata, payload))
                if batch.append_index + 1 == batch.append_count:
                    yield Append(begins, position, batch.recorded_at, rows)
                at += batch.length


def with_version(data: bytes, version: int, size: int) -> bytes:
    """A header of `size` bytes with another version and a right checksum."""
    head = data[:8] + version.to_bytes(2, "little") + data[10 : size - 4]
    return head + crc32(head).to_bytes(4, "little") + data[size:]


def log_of_version(folder: Path, version: int) -> Path:
    """A directory of another version with the seed's events."""
    (folder / "events.db").write_bytes(SEED.bytes)
    log = folder / f"v{version}"
    migrate(folder / "events.db", log)
    segment, marks = next(log.glob("0*")), log / "marks"
    segment.write_bytes(with_version(segment.read_bytes(), version, 128))
    slots = marks.read_bytes()
    marks.write_bytes(with_version(slots[:4_096], version, 112) + with_version(slots[4_096:], version, 112))
    return log


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return log_of_version(tmp_path, 0)


def test_an_older_version_is_migrated_by_copy_and_the_original_kept(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(old)
    monkeypatch.setitem(OLDER, 0, VersionZero)
    report = migrate(old, tmp_path / "log")
    assert (report.kind, report.version, report.events) == ("Tidelog", 0, len(SEED.events()))
    assert events(tmp_path / "log") == SEED.events()
    assert files(old) == before


def test_a_start_on_an_older_version_says_migrate_and_changes_nothing(run: Run, old: Path) -> None:
    before = files(old)
    for command in (["serve", "--bind", f"ipc://{old}/x", "--data"], ["verify", "--data"]):
        line = refusal(run(*command, str(old)), 65)
        assert "version 0 is older than 1: run `tidelog migrate`" in line
    assert files(old) == before


def test_versions_without_a_reader_are_named_and_nothing_is_made(tmp_path: Path, old: Path) -> None:
    with pytest.raises(InvalidHeader, match="version 0 is unknown"):
        migrate(old, tmp_path / "log")
    newer = log_of_version(tmp_path, 2)
    with pytest.raises(InvalidHeader, match="version 2 is unknown"):
        migrate(newer, tmp_path / "log")
    assert not list(tmp_path.glob("log*"))


def test_a_log_of_this_version_needs_no_migration(run: Run, tmp_path: Path) -> None:
    same = log_of_version(tmp_path, 1)
    assert "nothing is to be migrated" in refusal(run("migrate", str(same), "log"), 64)


def test_a_directory_with_another_magic_is_named(tmp_path: Path, old: Path) -> None:
    segment = next(old.glob("0*"))
    segment.write_bytes(b"NoSegmnt" + segment.read_bytes()[8:])
    with pytest.raises(InvalidHeader, match="magic"):
        migrate(old, tmp_path / "log")


def test_a_source_that_a_broker_has_or_that_holds_the_target_is_refused(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OLDER, 0, VersionZero)
    before = files(old)
    with pytest.raises(Unfit, match="inside"):
        migrate(old, old / "log")
    owner = RealDisk(old)
    owner.lock()
    with pytest.raises(Locked):
        migrate(old, tmp_path / "log")
    owner.close()
    assert files(old) == before
    assert not list(tmp_path.glob("log*"))
