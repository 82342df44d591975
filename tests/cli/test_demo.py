"""The demo on few flights: it passes, and it fails where projection or log differ from the CSV."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "flights.py"
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,"
    "origin,dest,air_time,distance,hour,minute,time_hour"
)


@pytest.fixture(scope="module")
def flights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table() -> list[str]:
    """Made-up flights with all that the real ones miss: times, delays, tail numbers."""
    rng = random.Random(2013)
    rows = [HEADER]
    for number in range(1_500):
        hour, minute, late, early = (
            rng.randrange(24),
            rng.randrange(60),
            rng.randrange(-20, 300),
            rng.randrange(-30, 200),
        )
        gone = [f"{hour}{minute:02}", str(late)] if rng.random() < 0.95 else ["NA", "NA"]
        there = [str(rng.randrange(1, 2401)), rng.choice([str(early), "NA"])] if gone[0] != "NA" else ["NA", "NA"]
        rows.append(
            f"2013,1,{number // 100 + 1},{gone[0]},{hour}{minute:02},{gone[1]},{there[0]},1200,{there[1]},"
            f"{rng.choice(['AA', 'UA', 'B6'])},{number},{rng.choice(['NA', f'N{rng.randrange(40)}'])},JFK,LAX,"
            f"{rng.choice(['300', 'NA'])},2475,{hour},{minute},2013-01-{number // 100 + 1:02}T{hour:02}:00:00Z"
        )
    return rows


def recorded(plan: dict[str, list[Any]]) -> Iterator[SimpleNamespace]:
    """The log that the plan makes, stream by stream."""
    position = 0
    for stream, events in plan.items():
        for version, event in enumerate(events):
            yield SimpleNamespace(
                position=position, stream=stream, version=version, type=event.type, payload=event.payload
            )
            position += 1


def test_the_demo_survives_the_kill_and_finds_everything_equal(table: list[str], tmp_path: Path) -> None:
    file = tmp_path / "flights.csv"
    file.write_text("\n".join(table) + "\n")
    command = [sys.executable, str(SCRIPT), "--csv", str(file), "--folder", str(tmp_path), "--limit", "1400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL to the broker" in done.stdout
    assert "projection and log are what the CSV says" in done.stdout
    assert list(tmp_path.iterdir()) == [file]


def test_the_real_flights_pass_too(flights: ModuleType, tmp_path: Path) -> None:
    if not flights._is_whole(flights.CACHE / flights.ARCHIVE):
        pytest.skip("the flights are not in data/: scripts/demo fetches them")
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--limit", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plan_is_in_time_order_and_has_an_event_for_each_time(flights: ModuleType, table: list[str]) -> None:
    plan, figures = flights.load(table)
    assert all(
        [event.minute for event in events] == sorted(event.minute for event in events) for events in plan.values()
    )
    cells = [line.split(",") for line in table[1:]]
    assert sum(map(len, plan.values())) == sum((row[3] != "NA") + (row[6] != "NA") for row in cells)
    for carrier, sums in figures.items():
        rows = [row for row in cells if row[9] == carrier]
        assert sums == [
            sum(row[3] != "NA" for row in rows),
            sum(int(row[5]) for row in rows if row[5] != "NA"),
            sum(row[6] != "NA" for row in rows),
            sum(int(row[8]) for row in rows if row[8] != "NA"),
        ]


def test_a_wrong_projection_is_noticed(flights: ModuleType) -> None:
    right = {"AA": [1, 5, 1, 7], "UA": [2, 0, 2, 0]}
    assert list(flights.differing_figures(right, {**right})) == []
    for wrong in {"AA": right["AA"]}, {**right, "AA": [1, 5, 1, 8]}, {**right, "B6": [1, 0, 0, 0]}:
        assert len(list(flights.differing_figures(wrong, right))) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.pop(),
        lambda log: log.pop(0),
        lambda log: log.append(log[-1]),
        lambda log: log.insert(0, log.pop()),
        lambda log: setattr(log[7], "payload", b"{}"),
        lambda log: setattr(log[7], "type", "Crashed"),
        lambda log: setattr(log[7], "position", 8),
        lambda log: setattr(log[7], "stream", "flights/unheard-of"),
    ],
)
def test_a_wrong_log_is_noticed(
    flights: ModuleType, table: list[str], change: Callable[[list[SimpleNamespace]], object]
) -> None:
    plan, _ = flights.load(table, 100)
    log = list(recorded(plan))
    assert list(flights.differing_log(log, plan)) == []
    change(log)
    assert len(list(flights.differing_log(log, plan))) == 1
