"""T-3 and T-4 as they are written: a real broker killed, one byte of its log flipped, and the broker started again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.process import BrokerProcess
from tidelog import Client, Event

EXIT_CORRUPT = 65


def killed(folder: Path, events: int, **settings: object) -> BrokerProcess:
    """A broker that took `events` appends of one event, a group each, and was killed."""
    environment = {f"TIDELOG_{name.upper()}": str(value) for name, value in settings.items()}
    folder.mkdir(exist_ok=True)
    broker = BrokerProcess(folder, environment=environment)
    broker.start()
    with Client(broker.endpoint, timeout=20.0) as client:
        for number in range(events):
            client.append("s", Event("a", b"event %d" % number))
    broker.kill()
    return broker


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tl-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def groups(segment: Path) -> list[tuple[int, int]]:
    """[start, stop) of every group record (FORMAT.md §2.2)."""
    content = segment.read_bytes()
    found, at = [], 4_096
    while content[at : at + 4] == b"TLGR":
        stop = at + 64 + int.from_bytes(content[at + 4 : at + 8], "little")
        found.append((at, stop))
        at = stop
    return found


def segment_of(broker: BrokerProcess) -> Path:
    (segment,) = broker.data.glob("0*-*")
    return segment


def flipped(segment: Path, offset: int) -> None:
    content = bytearray(segment.read_bytes())
    content[offset] ^= 0x20
    segment.write_bytes(bytes(content))


def files(broker: BrokerProcess) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(broker.data.rglob("*")) if path.is_file()}


def refused(broker: BrokerProcess) -> str:
    """What a start says that ends with 65 and leaves every byte as it was."""
    before = files(broker)
    said = len(broker.stderr())
    broker.start(ready=False)
    try:
        assert broker.wait(60) == EXIT_CORRUPT
    finally:
        broker.close()
    assert files(broker) == before
    return broker.stderr()[said:]


def test_a_flip_in_the_third_of_three_groups_without_a_mark_leaves_two_events_and_no_error(place: Path) -> None:
    """T-3"""
    broker = killed(place, 3, idle_mark_ms=3_600_000)
    try:
        start, stop = groups(segment_of(broker))[2]
        flipped(segment_of(broker), (start + stop) // 2)
        broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            assert [event.payload for event in client.read_all()] == [b"event 0", b"event 1"]
            assert client.append("s", Event("a", b"again")).first_version == 2
        assert "torn tail" in broker.stderr()
        assert broker.stop() == 0
    finally:
        broker.close()


def test_the_same_flip_with_a_mark_beyond_it_is_damage_and_nothing_is_changed(place: Path) -> None:
    """T-3: acknowledged data is never dropped in silence."""
    broker = killed(place, 3, idle_mark_ms=3_600_000, mark_groups=3)
    try:
        start, stop = groups(segment_of(broker))[2]
        flipped(segment_of(broker), (start + stop) // 2)
        said = refused(broker)
        assert f"at offset {start}" in said
        assert "names group 3" in said
    finally:
        broker.close()


def test_a_flip_in_groups_1_2_51_and_99_of_100_is_damage_with_offset_and_proof(place: Path) -> None:
    """T-4: one byte in header, body and checksum each."""
    broker = killed(place, 100, idle_mark_ms=3_600_000)
    try:
        segment = segment_of(broker)
        pristine, found = segment.read_bytes(), groups(segment)
        assert len(found) == 100
        for number in (1, 2, 51, 99):
            start, stop = found[number - 1]
            for offset in (start + 20, start + 64 + 70, stop - 2):
                flipped(segment, offset)
                said = refused(broker)
                assert segment.name in said
                assert f"at offset {start}" in said
                assert f"behind group {number - 1} " in said
                assert "names group 64" in said or f"numbered {number + 1}" in said
                segment.write_bytes(pristine)
        broker.start()
        with Client(broker.endpoint, timeout=20.0) as client:
            assert client.head() == 100
        assert broker.stop() == 0
    finally:
        broker.close()
