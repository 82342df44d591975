"""`tidelog verify` and `tidelog repair` as a person and a program meet them: words, JSON, exit codes (T-41, spec §16)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Run, refusal
from support.process import BrokerProcess
from tidelog import Client, Event


@pytest.fixture
def log(start_broker: Callable[..., BrokerProcess]) -> Path:
    """The directory of a log of three groups that was killed before a mark named them."""
    broker = start_broker(environment={"TIDELOG_IDLE_MARK_MS": "3600000"})
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(3):
            client.append("s/1", Event("t", b"%d" % number * 100))
    broker.kill()
    return broker.data


def group(log: Path, number: int) -> tuple[Path, int]:
    """The segment, and the offset of a group's header."""
    path = next(log.glob("0*"))
    at = 4_096
    for _ in range(number - 1):
        at = path.read_bytes().find(b"TLGR", at + 64)
    return path, at


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def files(log: Path) -> dict[str, bytes]:
    return {str(path.relative_to(log)): path.read_bytes() for path in sorted(log.rglob("*")) if path.is_file()}


def test_a_healthy_log_is_0_in_words_and_in_json(run: Run, log: Path) -> None:
    before = files(log)
    told = run("verify", "--data", str(log))
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(
        "healthy: whole\npositions 0 to 2: 3 events, 3 batches, 3 groups, 1 streams, 1 segments"
    )
    report = json.loads(run("verify", "--data", str(log), "--json").stdout)
    assert (report["verdict"], report["events"], report["head"], report["damage"], report["tail"]) == (
        "healthy", 3, 3, None, None
    )  # fmt: skip
    assert run("repair", "--data", str(log)).stdout.endswith("nothing to repair\n")
    assert files(log) == before


def test_a_torn_tail_is_1_for_who_looks_and_0_when_it_is_cut_and_kept(run: Run, log: Path) -> None:
    path, at = group(log, 3)
    write(path, at + 100, b"\xff")
    before = files(log)
    for command in (["verify"], ["repair", "--dry-run"]):
        told = run(*command, "--data", str(log))
        assert (told.returncode, told.stderr) == (1, "")
        assert told.stdout.startswith("torn: ")
        assert f"at offset {at} of segment {path.name} were never acknowledged" in told.stdout
    assert "repair would: cut " in run("repair", "--dry-run", "--data", str(log)).stdout
    assert files(log) == before
    done = run("repair", "--data", str(log), "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["verdict"], report["events"], report["before"]["verdict"]) == ("healthy", 2, "torn")
    kept = log / "quarantine" / report["quarantine"][0]
    assert kept.read_bytes() == before[path.name][at:].rstrip(b"\0")
    assert run("verify", "--data", str(log)).returncode == 0


def test_damage_is_65_and_stays_until_the_loss_is_accepted(run: Run, log: Path) -> None:
    path, at = group(log, 1)
    write(path, at + 100, b"\xff")
    before = files(log)
    for command in (["verify"], ["repair", "--dry-run"], ["repair"]):
        told = run(*command, "--data", str(log))
        assert (told.returncode, told.stderr) == (65, "")
        assert told.stdout.startswith(f"damaged: segment {path.name}, offset {at}, group 1, position 0\n")
        assert "proof: " in told.stdout
        assert "behind the hole stand 2 whole groups" in told.stdout
        assert "what to do: " in told.stdout
    plan = json.loads(run("repair", "--dry-run", "--data", str(log), "--json").stdout)["plan"]
    assert "--accept-loss" in plan[0]
    assert "2 whole groups" in plan[1]
    assert files(log) == before
    done = run("repair", "--accept-loss", "--data", str(log))
    assert done.returncode == 0
    assert "kept in quarantine/" in done.stdout
    assert "healthy" in done.stdout
    report = json.loads(run("verify", "--data", str(log), "--json").stdout)
    assert (report["verdict"], report["events"]) == ("healthy", 0)
    assert len(report["quarantine"]) == 2


def test_a_directory_that_is_missing_or_holds_no_log_is_refused(run: Run, tmp_path: Path) -> None:
    refusal(run("verify", "--data", str(tmp_path / "absent")), 64)
    assert "no log" in refusal(run("verify", "--data", str(tmp_path)), 65)
    (tmp_path / "file").write_text("something")
    assert "not a Tidelog directory" in refusal(run("repair", "--data", str(tmp_path)), 65)
    refusal(run("repair"), 64)


def test_a_running_broker_is_asked_and_its_directory_is_its_own(run: Run, shared: BrokerProcess) -> None:
    with Client(shared.endpoint, timeout=20.0) as client:
        client.append("s/1", Event("t", b"x"))
    for command in ("verify", "repair"):
        assert str(shared.pid) in refusal(run(command, "--data", str(shared.data)), 73)
    told = run("verify", "--json", TIDELOG_ENDPOINT=shared.endpoint)
    assert told.returncode == 0
    assert json.loads(told.stdout)["verdict"] == "healthy"
    refusal(run("verify", "--endpoint", f"ipc://{shared.data}/nobody"), 69)
