"""Faults planted in what saves and loads the index: each is caught by a test of this folder or by the search for crash states.

What nothing finds, and why: a checkpoint that is not synced, or a directory that is not, is a checkpoint that may be gone or
torn, and the one before it or the log is read instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import index.test_damage as damage
import index.test_doubt as doubt
import index.test_kill_points as kills
import pytest
from core.test_layers import Layers
from index.small_logs import saved_log, tiny
from index.test_digest import all_in_one_run
from support.crashes import Counterexample, Explorer
from support.mutants import CAUGHT, Piece, mutate
from support.workloads import run_workload, short_workloads
from tidelog_broker import checkpoints
from tidelog_broker.core import merging, run
from tidelog_broker.core.idwindow import IdWindow
from tidelog_broker.core.index import Index
from tidelog_broker.core.run import BadIndex, Run
from tidelog_broker.files import LogFiles
from tidelog_broker.index_digest import digest
from tidelog_broker.store import Store


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny():
        yield


def _crash_search() -> None:
    """The workloads of up to two operations that save the index."""
    explorer = Explorer(limit=60)
    for workload in short_workloads(7):
        if len(workload.operations) == 2 and any(name.startswith("checkpoint") for name in workload.operations):
            run_workload(explorer, workload)
        if len(workload.operations) > 2:
            return


def _layers() -> None:
    layers = Layers(3, cached=2)
    for _ in range(120):
        layers.group()
        layers.step()
        assert digest(layers.index) == digest(layers.whole)
    all_in_one_run(layers)
    assert digest(layers.index) == digest(layers.whole)


def _settings() -> None:
    doubt.test_with_other_settings_than_before_the_answers_are_right("an id window that turned", "a wider id window")


def _kills() -> None:
    log = kills.log.__wrapped__()  # type: ignore[attr-defined]
    kills.test_killed_before_any_call_the_next_start_has_the_index_of_the_log(log, "beside a broker")


MARKED = "not marks or since.group > marks[-1].group"
MUTANTS: dict[str, tuple[Callable[[], object], Piece]] = {
    "a run that is named before it is synced": (_crash_search, (checkpoints, "_make", "file.sync()", "pass")),
    "a block's checksum unread": (
        lambda: damage.sweep_of_runs(saved_log().image(), 200),
        (Run, "_block", "crc32(data[:-4], begin) != _U32.unpack_from(data, length - 4)[0]", "False"),
    ),
    "a block at the wrong place": (
        lambda: damage.test_blocks_that_changed_places_in_a_run_are_noticed(saved_log()),
        (run, "_place_crc", "crc32(_PLACE.pack(log_id, first, offset))", "0"),
    ),
    "a run known by its name alone": (
        doubt.test_runs_of_a_fork_under_the_names_of_this_logs_are_noticed,
        (checkpoints, "open_runs", "if (run.size, run.trailer) != (row.size, row.trailer):", "if False:"),
    ),
    "any group of this number at this place": (
        doubt.test_runs_of_a_fork_under_the_names_of_this_logs_are_noticed,
        (LogFiles, "_stands", "(head.number, head.tag) != (since.group, since.tag)", "head.number != since.group"),
    ),
    "a checkpoint that no mark reaches": (
        doubt.test_a_checkpoint_that_no_mark_reaches_is_not_used_and_an_older_one_is,
        (LogFiles, "_resume", MARKED, "not marks"),
    ),
    "a checkpoint that proves nothing": (
        doubt.test_a_log_that_ends_before_its_checkpoint_is_damaged_though_no_mark_says_so,
        (Store, "named", "return ", "return {} and "),
    ),
    "another log's index": (
        doubt.test_the_index_of_another_log_is_ignored_and_does_not_keep_this_ones_away,
        (checkpoints, "sweep", "if checkpoint.log_id == log_id", "if True"),
    ),
    "a window of another size": (
        _settings,
        (Store, "points", "and saved.window.events == self._settings.id_window_events", ""),
    ),
    "an id window whose generations are one": (
        _settings,
        (IdWindow, "from_image", "window.old = _ids(image.old_ids, image.old_numbers)", "pass"),
    ),
    "merging that forgets which entry is the newest": (_layers, (merging, "entries_of", "same[-1][2]", "same[0][2]")),
    "a frozen tail that is dropped too early": (_layers, (Index, "adopt", "if tail.stop > stop]", "if False]")),
    "runs swept while a checkpoint names them": (
        _kills,
        (checkpoints, "sweep", " | {row.name for _, checkpoint in kept for row in checkpoint.runs}", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", MUTANTS)
def test_the_tests_find_a_planted_fault(monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    notice, piece = MUTANTS[title]
    notice()
    mutate(monkeypatch, *piece)
    with pytest.raises((AssertionError, BadIndex, Counterexample, pytest.fail.Exception)) as found:
        notice()
    CAUGHT[title] = str(found.value).splitlines()[0][:100] if str(found.value) else "an assertion"
