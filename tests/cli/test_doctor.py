"""`tidelog doctor`: what it says of good and of bad facts, and of real brokers and directories."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, refusal
from support.fault_phases import health
from support.faults import Plan
from support.process import BrokerProcess, until
from support.thread_broker import BROKER, ThreadBroker, brokers_in_threads
from tidelog import Client, Event, Health
from tidelog_broker.directory import Directory
from tidelog_broker.doctor import ACT, LOOK, OK, Broker, Facts, Finding, duration, examine, size, worst

HEALTH = Health(True, True, "", 1_000, 0)
INFO: dict[str, Any] = {
    "version": "1", "pid": 7, "uptime_seconds": 60, "strict": False, "align": 1, "first_position": 0, "head": 1_000,
    "groups": 40, "streams": 3, "batches": 900, "checkpoint_group": 30, "checkpoint_age_seconds": 20, "runs": 1,
    "tail_batches": 100, "known_ids": 1_000, "id_window_begins": 0, "id_window_events": 65_536,
    "slowest_sync_us": 4_000, "last_sync_us": 200,
    "opened": {"checkpoint_group": 0, "groups_read": 0, "bytes_read": 0, "index_bytes_read": 0},
}  # fmt: skip
SERVING = Broker(health=HEALTH, info=INFO)
DIRECTORY = Directory(
    path="/log", log_id="00", room=100 << 30, room_total=200 << 30, segments=1, log_bytes=9_000_000, first_position=0,
    align=1, group=40, head=1_000, clean=True, problem="", checkpoint_group=30, checkpoint_age_seconds=20,
    bad_checkpoint="", index_bytes=1_000, tail_bytes=8_000_000, tail_events=100, quarantine=[], quarantine_bytes=0,
)  # fmt: skip
GOOD = Facts(broker=SERVING, directory=DIRECTORY, file_system="ext4")
STOPPED = Facts(directory=DIRECTORY, file_system="ext4")


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def of_broker(**changes: Any) -> Facts:
    return replace(GOOD, broker=replace(SERVING, **changes))


def of_info(**changes: Any) -> Facts:
    return of_broker(info=INFO | changes)


def of_directory(**changes: Any) -> Facts:
    return replace(GOOD, directory=replace(DIRECTORY, **changes))


@pytest.mark.parametrize("facts", [GOOD, STOPPED, replace(GOOD, directory=None)])
def test_good_facts_leave_nothing_to_do(facts: Facts) -> None:
    findings = examine(facts)
    assert {finding.verdict for finding in findings} == {OK}
    assert worst(findings) == OK
    assert len({finding.name for finding in findings}) == len(findings)


@pytest.mark.parametrize(
    ("facts", "name", "verdict", "word"),
    [
        (of_broker(health=HEALTH._replace(ready=False, reason="storage full")), "broker", ACT, "make room"),
        (
            of_broker(health=HEALTH._replace(ready=False, reason="a data-sync has been running for 9.0 s"), info=None),
            "broker", ACT, "the disk hangs",
        ),
        (of_broker(info=None), "figures", ACT, "ask again"),
        (of_broker(health=HEALTH._replace(degraded="damage found")), "damage", ACT, "verify"),
        (of_broker(check=("failed", {"reason": "no process"})), "damage", LOOK, "again"),
        (of_broker(checkpoint=("failed", {"reason": "no room"})), "index", LOOK, "again"),
        (of_info(tail_batches=3_000_000), "next start", LOOK, "checkpoint"),
        (of_info(slowest_sync_us=1_500_000), "sync", LOOK, "appends waited"),
        (replace(GOOD, directory=None, no_directory="it is elsewhere"), "disk", LOOK, "host"),
        (replace(GOOD, file_system="nfs4", remote=True), "disk", ACT, "local disk"),
        (of_directory(room=1 << 20), "disk", ACT, "refused"),
        (of_directory(room=2 << 30, index_bytes=2 << 30), "disk", LOOK, "make room"),
        (of_directory(problem="segment 2 is missing"), "log", ACT, "copy"),
        (of_directory(bad_checkpoint="checkpoint-2"), "index", LOOK, "checkpoint"),
        (of_directory(tail_bytes=20 << 30), "next start", LOOK, "checkpoint"),
        (of_directory(quarantine=["1-4096-2"], quarantine_bytes=6), "quarantine", LOOK, "delete"),
        (replace(STOPPED, directory=replace(DIRECTORY, tail_bytes=20 << 30)), "next start", LOOK, "checkpoint"),
    ],
)  # fmt: skip
def test_each_trouble_has_its_line_and_says_what_to_do(facts: Facts, name: str, verdict: str, word: str) -> None:
    findings = examine(facts)
    found = named(findings, name)
    assert found.verdict == verdict
    assert word in found.do
    assert worst(findings) == (ACT if ACT in {finding.verdict for finding in findings} else verdict)


def test_strictness_truncation_and_checks_are_told() -> None:
    assert "strict" in named(examine(of_info(strict=True, align=4_096)), "durability").says
    assert "before position 500" in named(examine(of_info(first_position=500)), "log").says
    done = examine(of_broker(check=("done", {"head": 900, "damage": None})))
    assert "900" in named(done, "damage").says
    assert (
        "not stopped cleanly"
        in named(examine(replace(STOPPED, directory=replace(DIRECTORY, clean=False))), "broker").says
    )


def test_of_a_stopped_log_the_next_start_is_told_from_its_events_and_bytes() -> None:
    facts = replace(STOPPED, directory=replace(DIRECTORY, tail_bytes=1_000_000_000, tail_events=1_000_000))
    assert named(examine(facts), "next start").says.endswith("in about 2.3 s to 12 s")


def test_sizes_and_times_are_for_people() -> None:
    assert [size(count) for count in (0, 999, 1_000, 3_240_000_000)] == ["0 bytes", "999 bytes", "1.0 kB", "3.2 GB"]
    assert [duration(s) for s in (0.34, 59, 119, 600, 86_400, 172_800)] == [
        "0.3 s",
        "59 s",
        "119 s",
        "10 min",
        "24 h",
        "2 d",
    ]


# -- the command


def findings_of(text: str) -> tuple[str, dict[str, dict[str, str]], dict[str, Any]]:
    """(verdict, findings by name, the directory) of a page in JSON."""
    report = json.loads(text)
    return report["verdict"], {row["name"]: row for row in report["findings"]}, report["directory"]


def test_a_running_broker_is_asked_and_its_directory_looked_at(run: Run, broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(10):
            client.append(f"s/{number}", Event("t", b"x"))
        info = client.info()
    assert 0 < info["last_sync_us"] <= info["slowest_sync_us"]
    told = run("doctor", "--json", "--endpoint", broker.endpoint)
    verdict, findings, directory = findings_of(told.stdout)
    assert told.returncode == (0 if verdict == OK else 1)
    assert "head 10" in findings["broker"]["says"]
    assert "10 batches" in findings["next start"]["says"]
    assert directory["log_id"] == info["log_id"]
    assert directory["segments"] == 1
    # The disk of whoever runs this may be full or slow; everything else is well.
    assert {row["verdict"] for row in findings.values() if row["name"] not in ("disk", "sync")} == {OK}
    page = run("doctor", "--endpoint", broker.endpoint).stdout
    assert [line.split()[1] for line in page.splitlines() if not line.startswith(" ")][:3] == [
        "broker",
        "durability",
        "disk",
    ]


def test_what_lies_in_quarantine_is_told_until_it_is_gone(run: Run, broker: BrokerProcess) -> None:
    folder = broker.data / "quarantine"
    folder.mkdir()
    (folder / "1-4096-2").write_bytes(b"cut off")
    told = run("doctor", "--endpoint", broker.endpoint)
    assert told.returncode == 1
    assert "1 file, 7 bytes: 1-4096-2" in told.stdout
    assert "→" in told.stdout
    (folder / "1-4096-2").unlink()
    assert findings_of(run("doctor", "--json", "--endpoint", broker.endpoint).stdout)[1]["quarantine"]["verdict"] == OK


def test_a_stopped_log_is_looked_at_without_a_changed_byte(run: Run, broker: BrokerProcess) -> None:
    assert str(broker.pid) in refusal(run("doctor", "--data", str(broker.data)), 73)
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s/1", Event("t", b"x" * 1_000))
    broker.stop()
    before = {path: path.read_bytes() for path in broker.data.rglob("*") if path.is_file()}
    _, findings, directory = findings_of(run("doctor", "--json", "--data", str(broker.data)).stdout)
    assert {path: path.read_bytes() for path in broker.data.rglob("*") if path.is_file()} == before
    assert "stopped cleanly" in findings["broker"]["says"]
    assert (directory["head"], directory["clean"], directory["checkpoint_group"], directory["tail_bytes"]) == (
        1,
        True,
        1,
        0,
    )
    segment = next(broker.data.glob("0*"))
    segment.rename(broker.data.parent / "away")
    told = run("doctor", "--data", str(broker.data))
    assert told.returncode == 1
    assert "no segment is there" in told.stdout


def test_a_broker_whose_disk_hangs_is_told_about_by_its_health(run: Run, folder: Path) -> None:
    (folder / "data").mkdir()
    gate = threading.Event()
    with brokers_in_threads(), ExitStack() as stack:
        broker = ThreadBroker(folder / "data", folder)
        stack.callback(gate.set)
        broker.disk.plans = [Plan("datasync", 1, thread=BROKER, hang=gate)]
        client = stack.enter_context(Client(broker.endpoint, timeout=60.0))
        waiting = client.append_nowait("s/1", [Event("t", b"x")])
        assert until(lambda: "data-sync" in health(broker)[2], 20.0)
        told = run("doctor", "--endpoint", broker.endpoint, "--timeout", "1")
        gate.set()
        assert waiting.result(20.0).first_position == 0
        assert broker.stop() == 0
    assert told.returncode == 1
    assert "a data-sync has been running" in told.stdout
    assert "the disk hangs" in told.stdout
    assert "it answers nothing but health" in told.stdout


def test_truncation_is_told_and_a_segment_that_is_missing(run: Run, start_broker: Callable[..., BrokerProcess]) -> None:
    broker = start_broker("--segment-bytes", "1048576")
    with Client(broker.endpoint, timeout=20.0) as client:
        for _ in range(80):
            client.append("s/1", Event("t", b"x" * 60_000))
        assert client.truncate_before(3) == 3
    _, findings, directory = findings_of(run("doctor", "--json", "--endpoint", broker.endpoint).stdout)
    assert "what lay before position 3 was removed" in findings["log"]["says"]
    assert directory["segments"] >= 4
    broker.stop()
    removed = sorted(broker.data.glob("0*"))[2]
    removed.rename(broker.data.parent / "away")
    told = run("doctor", "--data", str(broker.data))
    assert told.returncode == 1
    assert f"segment {int(removed.name[:10])} is missing" in told.stdout


def test_a_newer_checkpoint_that_is_damaged_is_told(run: Run, broker: BrokerProcess) -> None:
    with Client(broker.endpoint, timeout=20.0) as client:
        client.append("s/1", Event("t", b"x"))
    broker.stop()
    (broker.data / "index" / f"checkpoint-{9:020d}").write_bytes(b"torn")
    told = run("doctor", "--data", str(broker.data))
    assert told.returncode == 1
    assert f"checkpoint-{9:020d} can't be used" in told.stdout


def test_what_can_not_be_looked_at_is_refused(run: Run, tmp_path: Path) -> None:
    refusal(run("doctor", "--data", str(tmp_path / "absent")), 64)
    assert "no log" in refusal(run("doctor", "--data", str(tmp_path)), 65)
    refusal(run("doctor", "--data", str(tmp_path), "--endpoint", "ipc:///nowhere"), 64)
    refusal(run("doctor", "--endpoint", f"ipc://{tmp_path}/nobody", "--timeout", "0.5"), 69)
    refusal(run("doctor"), 64)
