"""Three processes, ingest → transform → count, and a broker, all of them killed at random: every line comes through exactly once.

The programs are those of docs/examples/pipeline, which docs/EXACTLY_ONCE.md shows. What a round is stands in support/pipeline.py,
what is judged beside the outputs in support/checker_sessions.py. TIDELOG_PIPELINE_ROUNDS and TIDELOG_PIPELINE_SEED change the
length and the dice; scripts/pipeline is the long run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.noted import digest_of
from support.pipeline import PROGRAMS, STAGES, campaign, outputs_wrong
from support.session_facts import Fact, Part, Stored

PAGE = PROGRAMS.parents[1] / "EXACTLY_ONCE.md"
ROUNDS = int(os.environ.get("TIDELOG_PIPELINE_ROUNDS", "100"))
SEED = int(os.environ.get("TIDELOG_PIPELINE_SEED", "0")) or random.randrange(1, 1 << 32)


@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_every_line_comes_through_exactly_once_whatever_is_killed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = campaign(ROUNDS, SEED, folder, lambda text: None)
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.faults, f"seed {SEED}: " + "\n".join(report.faults)
    assert report.rounds == ROUNDS
    # Each line is three appends at least: an ingest, a transform and a count that were noted.
    assert report.done["appends"] >= 3 * report.lines
    if ROUNDS >= 100:
        # A run that kills nobody, and in which nobody is overtaken, would test too little.
        roles = ["ingest", "transform", "count"]
        assert all(report.done[f"kills of {who}"] for who in ["the broker", *roles])
        assert all(report.done[f"overtakings of {who}"] for who in roles)
        assert report.done["times begun again"]


def _right() -> list[list[str]]:
    """The digests of the three stages of the lines "a b" and ""."""
    return [
        [digest_of("line", b"a b"), digest_of("line", b"")],
        [digest_of("words", b'["a", "b"]'), digest_of("words", b"[]")],
        [digest_of("total", b"[1, 2]"), digest_of("total", b"[2, 2]")],
    ]


def _log(stages: list[list[str]]) -> list[Fact]:
    return [
        Stored([Part(stream, 0, version, [("", digest)])])
        for stream, digests in zip(STAGES, stages, strict=True)
        for version, digest in enumerate(digests)
    ]


def test_the_outputs_of_a_run_without_kills_are_right() -> None:
    assert outputs_wrong(["a b", ""], _log(_right())) == []


@pytest.mark.parametrize("stage", range(3))
@pytest.mark.parametrize("lie", ["lost", "doubled", "swapped", "changed"])
def test_an_output_that_is_not_what_the_input_gives_is_found(stage: int, lie: str) -> None:
    stages = _right()
    one, two = stages[stage]
    stages[stage] = {"lost": [one], "doubled": [one, one, two], "swapped": [two, one], "changed": [one, "other"]}[lie]
    (found,) = outputs_wrong(["a b", ""], _log(stages))
    assert found.startswith(STAGES[stage])


def test_a_stage_without_any_output_is_found() -> None:
    assert len(outputs_wrong(["a b", ""], [])) == 3


def test_events_that_no_stage_writes_are_found() -> None:
    stray: list[Fact] = [Stored([Part("other/1", 9, 0, [("", "stray")])])]
    assert len(outputs_wrong(["a b", ""], _log(_right()) + stray)) == 1


@pytest.mark.parametrize("program", ["ingest", "transform", "count"])
def test_the_page_shows_the_programs_as_they_are(program: str) -> None:
    assert f"```python\n{(PROGRAMS / f'{program}.py').read_text()}```" in PAGE.read_text()
