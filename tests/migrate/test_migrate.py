"""`tidelog migrate` from a file of EventfoldDB: what is kept, what is told, what is refused, what stands there then (T-54)."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import pytest
from migrate.found import events, files
from migrate.seed import Given, Seed, grown, header, large, small
from support.command import Run, refusal
from tidelog.batch import INCOMPLETE, Batch, Incomplete, read_batch, unpack_columns
from tidelog_broker.disk import RealDisk
from tidelog_broker.migrate import migrate, pack_append
from tidelog_broker.source import Append
from tidelog_broker.staging import NOTE

VERSIONS = pytest.mark.parametrize("version", [1, 2, 3])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# What is kept


@VERSIONS
def test_every_event_stands_in_the_target_as_it_stood_in_the_source_which_is_unchanged(
    run: Run, tmp_path: Path, version: int
) -> None:
    seed = small(version)
    source = write(tmp_path / "events.db", seed.bytes)
    source.chmod(0o400)
    before = files(tmp_path)
    done = run("migrate", "events.db", "log")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"migrated events.db (EventfoldDB, format {version}) to log",
        f"6 events, {len(seed.wanted)} appends, 6 batches, 2 streams"
        if version == 1
        else "6 events, 3 appends, 5 batches, 2 streams",
        "recorded_at: kept" if version == 3 else f"recorded_at: 0: format {version} has no times",
    ]
    assert events(tmp_path / "log") == seed.events()
    after = files(tmp_path)
    assert after["events.db"] == before["events.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.db", "log"]
    assert run("verify", "--data", "log").stdout.startswith("healthy: stopped cleanly")


def test_the_report_is_an_object_for_programs(run: Run, tmp_path: Path) -> None:
    seed = small(3)
    write(tmp_path / "events.db", seed.bytes[:-5])
    done = run("migrate", "events.db", "log", "--json")
    report = json.loads(done.stdout)
    assert len(bytes.fromhex(report.pop("log_id"))) == 16
    assert report == {
        "source": "events.db", "kind": "EventfoldDB", "version": 3, "target": "log", "events": 4, "appends": 2,
        "batches": 4, "streams": 2, "has_times": True,
        "torn": {"offset": seed.starts[2], "bytes": len(seed.bytes) - 5 - seed.starts[2]},
    }  # fmt: skip


@VERSIONS
def test_a_torn_tail_is_left_out_and_told_and_the_rest_is_migrated(run: Run, tmp_path: Path, version: int) -> None:
    seed = small(version)
    write(tmp_path / "events.db", seed.bytes[:-1])
    done = run("migrate", "events.db", "log")
    assert done.returncode == 0
    told = f"{len(seed.bytes) - 1 - seed.starts[-1]} bytes at offset {seed.starts[-1]}"
    assert done.stderr.startswith("tidelog: warning: torn tail: " + told)
    assert done.stderr.count("\n") == 1
    assert f"left out: {told}" in done.stdout
    assert events(tmp_path / "log") == seed.events(len(seed.wanted) - 1)


def test_a_log_without_events_becomes_one(tmp_path: Path) -> None:
    report = migrate(write(tmp_path / "events.db", header(2)), tmp_path / "log")
    assert (report.events, report.appends, report.streams) == (0, 0, 0)
    assert events(tmp_path / "log") == []


def test_event_ids_that_stand_twice_are_kept(tmp_path: Path) -> None:
    one, two = b"1" * 16, b"2" * 16
    seed = grown(
        2, [(0, [Given(one, b"i" * 16), Given(one, b"i" * 16), Given(two, b"i" * 16)]), (0, [Given(one, b"i" * 16)])]
    )
    migrate(write(tmp_path / "events.db", seed.bytes), tmp_path / "log")
    assert events(tmp_path / "log") == seed.events()


def test_an_append_stays_one_append_of_a_batch_for_each_run_of_a_stream() -> None:
    one, two = "1" * 36, "2" * 36
    rows = [(one, 7, b"a" * 16, "t", b"", b"p"), (one, 8, b"b" * 16, "u", b"m", b""), (two, 0, b"c" * 16, "t", b"", b""),
            (one, 9, b"d" * 16, "t", b"", b"")]  # fmt: skip
    batches: list[Batch] = []
    for data in pack_append(Append(8, 40, 1234, rows)):
        batch = read_batch(data)
        assert not isinstance(batch, Incomplete)
        assert batch.length == len(data)
        batches.append(batch)
    assert [(b.append_index, b.append_count, b.stream, b.first_position, b.first_version, b.events) for b in batches] == [
        (0, 3, one, 40, 7, 2), (1, 3, two, 42, 0, 1), (2, 3, one, 43, 9, 1)
    ]  # fmt: skip
    assert {batch.recorded_at for batch in batches} == {1234}
    assert unpack_columns(batches[0].region) == (b"a" * 16 + b"b" * 16, ("t", "u"), (b"", b"m"), (b"p", b""))
    assert read_batch(pack_append(Append(8, 40, 1234, rows))[0][:-1]) is INCOMPLETE


def test_a_hundred_thousand_events_take_seconds(tmp_path: Path) -> None:
    seed = large(3, events=100_000, streams=2_000)
    write(tmp_path / "events.db", seed.bytes)
    begin = time.monotonic()
    report = migrate(tmp_path / "events.db", tmp_path / "log")
    took = time.monotonic() - begin
    print(f"migrated {report.events:,} events, {len(seed.bytes):,} bytes, {report.batches:,} batches in {took:.1f} s")
    assert (report.events, report.appends, report.streams) == (seed.position, len(seed.wanted), len(seed.versions))
    assert events(tmp_path / "log") == seed.events()


# What is refused, and that nothing is left of it


def refused(run: Run, tmp_path: Path, code: int, *words: str) -> None:
    """The command must refuse events.db, and leave everything as it was."""
    before = files(tmp_path)
    line = refusal(run("migrate", "events.db", "log"), code)
    for word in words:
        assert word in line
    assert files(tmp_path) == before
    assert not (tmp_path / "log").exists()
    assert not (tmp_path / "log.migrating").exists()


@VERSIONS
def test_damage_is_named_with_its_offset_and_leaves_nothing(run: Run, tmp_path: Path, version: int) -> None:
    seed = small(version)
    data = bytearray(seed.bytes)
    data[seed.starts[1] + 60] ^= 1
    write(tmp_path / "events.db", bytes(data))
    refused(run, tmp_path, 65, "events.db: wrong ", " at offset ", "Nothing was migrated")


def test_a_copy_cut_at_the_offset_that_a_refusal_names_is_migrated_up_to_there(tmp_path: Path) -> None:
    seed = small(3)
    data = seed.bytes[:-1] + bytes([seed.bytes[-1] ^ 1])
    write(tmp_path / "copy.db", data[: seed.starts[-1]])
    migrate(tmp_path / "copy.db", tmp_path / "log")
    assert events(tmp_path / "log") == seed.events(2)


def test_other_files_and_versions_are_named(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "events.db", header(4) + small(3).bytes[8:])
    refused(run, tmp_path, 65, "events.db: version 4 ")
    write(tmp_path / "events.db", b"SQLite format 3\0" + bytes(100))
    refused(run, tmp_path, 65, "events.db: magic is ", "EFDB")
    write(tmp_path / "events.db", b"")
    refused(run, tmp_path, 65, "magic")


def test_an_append_that_no_group_can_hold_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    """65,536 runs of one event: each is a batch, with a header of its own."""
    seed = Seed(2)
    given = [Given(bytes([number % 2]) * 16, b"i" * 16, payload=bytes(140)) for number in range(65_536)]
    write(tmp_path / "events.db", seed.append(0, given).bytes)
    refused(run, tmp_path, 65, "append too large at offset 8", "a group holds")


def test_a_source_that_is_not_there_or_no_file_is_a_wrong_usage(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path, 64, "events.db: No such file")
    os.mkfifo(tmp_path / "events.db")
    refused(run, tmp_path, 64, "neither a file nor a directory")
    (tmp_path / "events.db").unlink()
    (tmp_path / "events.db").mkdir()
    refused(run, tmp_path, 65, "holds no log")
    refusal(run("migrate", "events.db"), 64)


def test_a_target_that_holds_something_is_never_touched(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "events.db", small(3).bytes)
    (tmp_path / "log").mkdir()
    write(tmp_path / "log" / "mine", b"1")
    write(tmp_path / "file", b"2")
    (tmp_path / "link").symlink_to("nowhere/log")
    before = files(tmp_path)
    for target, words in (
        ("log", "empty directory"),
        ("file", "empty directory"),
        ("a/b", "no directory"),
        ("link", "no directory"),
    ):
        assert words in refusal(run("migrate", "events.db", target), 64)
    assert files(tmp_path) == before
    assert not list(tmp_path.glob("*.migrating"))


@pytest.mark.parametrize("target", ["log", "log/", "link"])
def test_a_target_may_be_an_empty_directory_or_a_link_to_one(run: Run, tmp_path: Path, target: str) -> None:
    write(tmp_path / "events.db", small(3).bytes)
    (tmp_path / "log").mkdir()
    (tmp_path / "link").symlink_to("log")
    assert run("migrate", "events.db", target).returncode == 0
    assert events(tmp_path / "log") == small(3).events()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "log").iterdir()} == {0o600}
    assert not list(tmp_path.glob("*.migrating"))


def test_what_a_killed_migration_left_is_begun_anew_and_what_others_left_is_not_touched(
    run: Run, tmp_path: Path
) -> None:
    write(tmp_path / "events.db", small(3).bytes)
    left = tmp_path / "log.migrating"
    left.mkdir()
    write(left / "mine", b"1")
    assert "log.migrating is in the way" in refusal(run("migrate", "events.db", "log"), 64)
    assert (left / "mine").read_bytes() == b"1"
    (left / "mine").unlink()
    left.rmdir()
    write(left, b"2")
    assert "log.migrating is in the way" in refusal(run("migrate", "events.db", "log"), 64)
    left.unlink()
    (left / "log").mkdir(parents=True)
    write(left / NOTE, b"")
    write(left / "log" / "marks", b"half a log")
    # Nobody takes it for a log meanwhile.
    assert "not a Tidelog directory" in refusal(run("verify", "--data", "log.migrating"), 65)
    assert run("migrate", "events.db", "log").returncode == 0
    assert events(tmp_path / "log") == small(3).events()
    assert not left.exists()


def test_two_migrations_do_not_share_a_place(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "events.db", small(3).bytes)
    (tmp_path / "log.migrating").mkdir()
    other = RealDisk(tmp_path / "log.migrating")
    other.lock()
    assert f"in use by process {os.getpid()}" in refusal(run("migrate", "events.db", "log"), 73)
    other.close()
    assert run("migrate", "events.db", "log").returncode == 0


def test_no_room_is_75_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "events.db", large(3, 20_000, 10).bytes)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))

    assert "no room for log" in refusal(run("migrate", "events.db", "log", preexec_fn=small_files), 75)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.db"]
