"""The digest of an index: the same however it lies in tails and runs, another for anything that would be answered differently;
`tidelog verify --index` tells the two apart and changes nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core.test_layers import LOG_ID, Layers
from index.small_logs import INDEXED, SETTINGS, SmallLog, files_of, flipped, saved_log, tiny
from support.command import COMMAND
from support.process import BrokerProcess
from support.simdisk import SimDisk
from tidelog import Client, Event
from tidelog_broker.core.checkpoint import Checkpoint
from tidelog_broker.core.index import Index
from tidelog_broker.core.merging import merge_runs, write_tail
from tidelog_broker.core.run import RunWriter
from tidelog_broker.index_digest import compare, digest
from tidelog_broker.store import Store


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny():
        yield


@pytest.mark.parametrize("seed", range(6))
def test_in_memory_frozen_or_in_runs_the_digest_is_the_same(seed: int) -> None:
    layers = Layers(seed, cached=3)
    seen = set()
    for _ in range(80):
        layers.group()
        layers.step()
        assert digest(layers.index) == digest(layers.whole)
        seen.add(digest(layers.whole))
    assert len(seen) == 80
    all_in_one_run(layers)
    assert digest(layers.index) == digest(layers.whole)


def all_in_one_run(layers: Layers) -> None:
    """Nothing newer hides what a merged run says."""
    index = layers.index
    if index.tail.positions:
        index.freeze()
    while index.frozen:
        tail = index.frozen[0]
        index.adopt(
            [*index.runs, layers.run(f"run-{tail.first}", lambda put: write_tail(index.frozen[0], put, LOG_ID))]
        )
    runs = list(index.runs)
    index.adopt([layers.run("run", lambda put: merge_runs(runs, put, LOG_ID, 0))])


def _one_group(index: Index, **change: Any) -> str:
    row = {
        "name": "a/1",
        "events": 2,
        "version": 0,
        "signature": 5,
        "length": 100,
        "starts": True,
        "deletion": False,
        **change,
    }
    place = row.pop("place", 4_160)
    index.apply(1, place, [tuple(row.values()), ("b/1", 1, 0, 1, 80, False, False)])
    return digest(index)


def test_whatever_is_different_makes_another_digest() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"name": "a/2"}, {"name": "b/2"}, {"events": 3}, {"version": 1}, {"signature": 4}, {"length": 101},
        {"starts": False}, {"deletion": True}, {"place": 4_161},
    ]  # fmt: skip
    assert len({_one_group(Index(), **change) for change in changes}) == len(changes)


def test_what_was_removed_is_no_part_of_it_but_that_it_was_is() -> None:
    one, two = Layers(1, 100), Layers(1, 100)
    for layers in (one, two):
        for _ in range(30):
            layers.group()
    for _ in range(20):
        two.step()
    position = one.whole.position_of(one.whole.append_at_or_behind(one.whole.head // 2))
    before = digest(one.whole)
    for index in (one.whole, two.whole, two.index):
        index.truncate(position)
    assert digest(one.whole) == digest(two.whole) == digest(two.index) != before


def rewritten(log: SmallLog, change: Callable[[list[Any]], None], monkeypatch: pytest.MonkeyPatch) -> SimDisk:
    """The log, its newest index written by a program that has a bug: every checksum is right."""
    entry = RunWriter.entry

    def wrong(self: RunWriter, *values: Any) -> None:
        changed = list(values)
        if changed[0] == b"sd/1":
            change(changed)
        entry(self, *changed)

    disk = log.disk.clone()
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "entry", wrong)
        store = Store.behind_checkpoint(disk, SETTINGS, INDEXED, log.store.log.group)
        store.checkpoint()
    return disk


CHANGES: dict[str, Callable[[list[Any]], None]] = {
    "a version": lambda values: values.__setitem__(1, values[1] + 1),
    "an end": lambda values: values.__setitem__(2, values[2] + 1),
    "a deletion": lambda values: values.__setitem__(3, 1),
    "a batch": lambda values: values.__setitem__(4, list(values[4])[:-1]),
    "a stream": lambda values: values.__setitem__(0, b"sd/12"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_index_that_is_wrong_under_right_checksums_is_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = saved_log()
    log.store.log.mark()
    right = compare(log.disk, SETTINGS)
    assert (right.verdict, right.saved, right.reason) == ("healthy", right.rebuilt, "")
    found = compare(rewritten(log, CHANGES[what], monkeypatch), SETTINGS)
    assert found.verdict == "damaged"
    assert found.rebuilt == right.rebuilt != found.saved
    assert found.checkpoint_group == log.store.log.group


def test_looking_at_a_damaged_index_changes_nothing() -> None:
    log = saved_log()
    log.store.log.mark()
    image = log.image()
    newest = files_of(image, "checkpoint-")[-1]
    run = f"index/{Checkpoint.unpack(image[newest], newest).runs[0].name}"
    damaged = {**image, run: flipped(image[run], 40)}
    disk = SimDisk(damaged)
    found = compare(disk, SETTINGS)
    assert (found.verdict, found.saved) == ("damaged", "")
    assert "is damaged" in found.reason
    assert disk.image() == damaged
    without = {name: data for name, data in image.items() if "checkpoint-" not in name}
    assert compare(SimDisk(without), SETTINGS).checkpoint_group == 0


def test_verify_index_says_0_or_65_and_what_to_do(start_broker: Callable[..., BrokerProcess]) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, "verify", "--index", *more], capture_output=True, timeout=60, text=True)

    broker = start_broker()
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(20):
            client.append(f"s/{number % 3}", Event("t", b"x"))
    assert run("--data", str(broker.data)).returncode == 73
    assert broker.stop() == 0
    assert run().returncode == 64
    found = json.loads(run("--data", str(broker.data), "--json").stdout)
    assert found["saved"] == found["rebuilt"]
    assert (found["verdict"], found["head"], found["checkpoint_group"]) == ("healthy", 20, found["group"])
    told = run("--data", str(broker.data))
    assert (told.returncode, told.stdout.count(found["rebuilt"])) == (0, 2)
    path = next((broker.data / "index").glob("run-*"))
    path.write_bytes(flipped(path.read_bytes(), 40))
    before = files(broker.data)
    told = run("--data", str(broker.data))
    assert told.returncode == 65
    assert "delete the folder index/" in told.stdout
    assert files(broker.data) == before


def files(data: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in data.rglob("*") if path.is_file()}
