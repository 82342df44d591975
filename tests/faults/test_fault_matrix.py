"""Every call that a broker makes to its disk fails, in every phase, in every way, once and lastingly (T-11, T-12, T-57).

The broker is whole (its loop, its sockets, its exit code), in a thread; support/fault_rules.py says what must follow of each
fault, from the spec alone. Each case: what the callers were told, what the broker does, its exit code, that nothing more is
written behind the failure that ends it, and that the next start has everything that was acknowledged, nothing of what was
refused, and of the rest all or nothing. What can be had for real is in test_real_faults.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from errno import EDQUOT, EINTR, EIO, ENOSPC, EROFS
from pathlib import Path

import pytest
from support.fault_phases import FIRST_PAGE, LARGE, PHASES, ROLLING, Caller, Phase, Promises, health
from support.fault_rules import KINDS, Kind, Outcome, Step, expected
from support.faults import CHANGING, Plan
from support.independent import reader
from support.process import until
from support.thread_broker import ThreadBroker, brokers_in_threads
from tidelog.errors import CorruptLog, OutcomeUnknown, StorageFull
from tidelog_broker import files
from tidelog_broker.disk import RealDisk

EXIT_IO, EXIT_FULL = 74, 75
counted: Counter[Outcome] = Counter()
cells: set[tuple[str, str, str]] = set()
"""(phase, operation, kind) that were run."""


@dataclass(slots=True)
class Bench:
    """A place for logs, and the log that each phase begins with."""

    place: Path
    made: dict[str, tuple[Path, Promises]]
    recorded: dict[str, list[tuple[int, Step]]]
    number: int = 0

    def begin(self, phase: Phase) -> tuple[Path, Promises]:
        """A copy of the log that `phase` begins with."""
        if phase.name not in self.made:
            template, promises = self.place / f"template{len(self.made)}", Promises()
            template.mkdir()
            phase.begin(template, self.place, promises)
            self.made[phase.name] = template, promises
        template, promises = self.made[phase.name]
        self.number += 1
        data = self.place / str(self.number)
        shutil.copytree(template, data)
        return data, promises.copy()

    def start(self, phase: Phase, data: Path, *plans: Plan, wait: bool = True) -> ThreadBroker:
        prepares = phase.name == "preparing"
        return ThreadBroker(data, self.place, list(plans), prepares=prepares, wait=wait, **dict(phase.numbers))

    def steps(self, phase: Phase) -> list[tuple[int, Step]]:
        """What the phase does when nothing but its own faults fails."""
        if phase.name in self.recorded:
            return self.recorded[phase.name]
        data, promises = self.begin(phase)
        armed = phase.starts or phase.name == "preparing"
        broker = self.start(phase, data, *(phase.plans() if armed else []))
        assert broker.code is None, (broker.lines, broker.crash)
        caller = Caller(broker, promises)
        if not armed:
            broker.disk.calls.clear()
            broker.disk.plans = phase.plans()
        phase.ask(broker, caller)
        if phase.name == "stop":
            broker.wait()
        steps = phase.steps(list(broker.disk.calls))
        broker.disk.plans = []
        assert broker.stop() == 0, (broker.lines, broker.crash)
        caller.close()
        shutil.rmtree(data)
        assert steps
        self.recorded[phase.name] = steps
        return steps


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="tl-", dir=memory if os.access(memory, os.W_OK) else None))
    with brokers_in_threads(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "OPEN_FILES_MAX", 2)  # so that a read opens its segment again
        yield Bench(place, {}, {})
    shutil.rmtree(place, ignore_errors=True)


def plans_of(phase: Phase, op: str, nth: int, kind: Kind, lasting: bool) -> list[Plan]:
    """The fault; a disk that takes a part of a write has, if that lasts, no room for the rest."""
    one = Plan(op, nth, kind.number, short=kind.short, name=phase.only, thread=phase.thread)
    if not lasting:
        return [one]
    if kind.number:
        return [replace(one, lasting=True)]
    return [one, replace(one, nth=nth + 1, errno=ENOSPC, short=0, lasting=True)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_every_call_that_fails_has_the_outcome_that_the_rules_say(phase: Phase, kind: Kind, bench: Bench) -> None:
    """T-11, T-12, T-57 (a rollback whose sync fails), spec §§6.5, 8, 16"""
    wrong: list[str] = []
    for nth, step in bench.steps(phase):
        if kind.name == "short" and step.op != "write":
            continue
        # Behind a spare that can't be dropped, a fault that lasts is the next append's own.
        for lasting in (False,) if phase.name == "dropping a spare" else (False, True):
            outcome, why = expected(step, kind, lasting=lasting)
            try:
                run(bench, phase, nth, step, kind, lasting, outcome)
            except AssertionError as error:
                times = "lasting" if lasting else "once"
                title = f"{kind.name} ({times}) of {step.op} {nth} [{step.target}]: expected {outcome.name} by {why}"
                wrong.append(f"{title}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[1:])}")
            assert len(wrong) < 3, "\n".join(wrong)
            counted[outcome] += 1
            cells.add((phase.name, step.op, kind.name))
    assert not wrong, "\n".join(wrong)


def run(bench: Bench, phase: Phase, nth: int, step: Step, kind: Kind, lasting: bool, outcome: Outcome) -> None:
    data, promises = bench.begin(phase)
    plans = [*phase.plans(), *plans_of(phase, step.op, nth, kind, lasting)]
    if phase.starts:
        fail_to_start(bench, phase, data, plans, outcome)
    else:
        fail_running(bench, phase, data, promises, plans, outcome, lasting)
    again(bench, phase, data, promises)
    shutil.rmtree(data)


def fail_to_start(bench: Bench, phase: Phase, data: Path, plans: list[Plan], outcome: Outcome) -> None:
    """A start that can't be: its code, one line, nothing behind the failure; and the same again if the fault lasts."""
    ends = (EXIT_IO if outcome is Outcome.NO_START else EXIT_FULL, 1)
    broker = bench.start(phase, data, *plans)
    code = broker.wait() if broker.code is not None else broker.stop()
    assert (code, len(broker.lines)) == ends, (broker.lines, broker.crash)
    nothing_behind(broker, plans[0])
    if plans[-1].lasting:
        fault = replace(plans[-1], nth=1, calls=0)
        broker = bench.start(phase, data, fault)
        code = broker.wait() if broker.code is not None else broker.stop()
        # The first start may have come so far that there is no such call left.
        assert (code, len(broker.lines)) == ends or not fault.calls, (broker.lines, broker.crash)


def fail_running(
    bench: Bench, phase: Phase, data: Path, promises: Promises, plans: list[Plan], outcome: Outcome, lasting: bool
) -> None:
    early = phase.name == "preparing"
    broker = bench.start(phase, data, *(plans if early else []))
    caller, code = None, None
    if not (early and outcome is Outcome.ENDS):  # then it may have ended before anybody could ask
        caller = Caller(broker, promises)
        if not early:
            broker.disk.calls.clear()
            broker.disk.plans = plans
        code = phase.ask(broker, caller)
    if outcome is Outcome.ENDS:
        if phase.append:
            assert code == OutcomeUnknown.code
        assert broker.wait() == EXIT_IO, broker.crash
        assert len(broker.lines) == 1
        nothing_behind(broker, plans[-1 if phase.fixed else 0])
    else:
        assert caller
        goes_on(broker, caller, phase, code, outcome, lasting)
        assert broker.stop() == 0, broker.lines
    if caller:
        caller.close()


def goes_on(
    broker: ThreadBroker, caller: Caller, phase: Phase, code: int | None, outcome: Outcome, lasting: bool
) -> None:
    """What still works while the fault lasts, and what comes back with its end."""
    if outcome is Outcome.REFUSED:
        assert code == StorageFull.code
        promises = caller.promises
        if lasting:
            assert [caller.append(ROLLING), caller.append(LARGE)] == [StorageFull.code] * 2
            assert health(broker)[:3] == (True, False, "storage full")
        promises.judge(caller.found())
        broker.disk.plans = []
        made, pair = caller.send(ROLLING)
        assert caller.answer(pair) == 0
        assert caller.raw.resend(made).duplicate
    elif outcome is Outcome.FULL:
        if lasting:
            assert caller.append(50) == 0
            assert health(broker)[:3] == (True, False, "storage full")
            caller.promises.judge(caller.found())
        broker.disk.plans = []
        assert until(lambda: health(broker)[1], 10)
        assert caller.append(LARGE) == 0
    elif outcome is Outcome.PAGE:
        assert code == CorruptLog.code
        if lasting:
            assert phase.ask(broker, caller) == CorruptLog.code
        head = caller.raw.read_head()
        assert len(caller.raw.read(start=head - 2)) == 2
        assert caller.append() == 0
        broker.disk.plans = []
        caller.promises.judge(caller.found())
    else:
        assert outcome is Outcome.UNNOTICED
        assert code in (0, None)
        broker.disk.plans = []
        assert caller.append() == 0


def nothing_behind(broker: ThreadBroker, plan: Plan) -> None:
    """Behind the call that fails for good nothing is changed any more, no sync tried again."""
    count = 0
    for place, call in enumerate(broker.disk.calls):
        count += (call.op, call.thread) == (plan.op, plan.thread) and plan.name in call.name
        if count == plan.nth:
            later = [row for row in broker.disk.calls[place + 1 :] if row.thread == plan.thread]
            # A spare that could not be finished may go: it is no part of the log.
            assert [row for row in later if row.op in CHANGING and (row.op, row.name) != ("unlink", "spare")] == []
            return
    raise AssertionError("the call that should fail was not made")


def again(bench: Bench, phase: Phase, data: Path, promises: Promises) -> None:
    """The next start, without faults: what is there, that it takes more, and that another reader finds it whole."""
    broker = ThreadBroker(data, bench.place)
    assert broker.code is None, (broker.lines, broker.crash)
    caller = Caller(broker, promises)
    found = caller.found()
    promises.judge(found)
    promises.settle(found)
    assert caller.append() == 0
    caller.close()
    assert broker.stop() == 0
    rows, verdict = reader.read_log(data)
    assert str(verdict) == "whole"
    promises.judge([(row.position, row.stream, row.payload) for row in rows])


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_while_any_call_hangs_health_answers_nobody_is_told_yes_and_then_all_goes_on(
    phase: Phase, bench: Bench
) -> None:
    """Spec §9; a stop while a disk hangs for good is in test_stopping.py."""
    for nth, step in bench.steps(phase):
        held = threading.Event()
        fault = Plan(step.op, nth, name=phase.only, thread=phase.thread, hang=held)
        data, promises = bench.begin(phase)
        try:
            hang(bench, phase, data, promises, fault)
        except AssertionError as error:
            raise AssertionError(f"{step.op} {nth} [{step.target}] hangs") from error
        finally:
            held.set()
        again(bench, phase, data, promises)
        shutil.rmtree(data)
        counted[Outcome.WAITS] += 1
        cells.add((phase.name, step.op, "hang"))


def hang(bench: Bench, phase: Phase, data: Path, promises: Promises, fault: Plan) -> None:
    held = fault.hang
    assert held is not None
    early = phase.starts or phase.name == "preparing"
    plans = [*phase.plans(), fault]
    broker = bench.start(phase, data, *(plans if early else []), wait=not phase.starts)
    if phase.starts:
        assert until(lambda: fault.calls == fault.nth, 10, 0.001)
        assert not broker.ready.wait(0.01)
        held.set()
        broker.wait_ready()
        assert broker.stop() == 0, broker.crash
        return
    caller, stranger = Caller(broker, promises), Caller(broker, promises)
    if not early:
        broker.disk.calls.clear()
        broker.disk.plans = plans
    pair = None
    if phase.append:
        pair = caller.send(phase.append)[1]
    elif phase.name == "stop":
        phase.ask(broker, caller)
    elif phase.name == "read":
        caller.raw.start_call(*FIRST_PAGE)
    elif phase.name == "idle mark":
        assert caller.append() == 0
    assert until(lambda: fault.calls == fault.nth, 10, 0.001)
    live, ready, reason, head, _ = health(broker)
    assert (live, head) == (True, len(promises.acked))
    if phase.name == "preparing":
        # What is prepared can be used; who needs what is being prepared waits, and health says why.
        assert caller.append() == 0
        for _ in range(4):
            pair = caller.send(LARGE)[1]
            assert until(lambda: caller.has_answer() or not health(broker)[1], 10)
            if not caller.has_answer():
                break
            assert caller.answer(pair) == 0
    if phase.name == "stop":
        assert (ready, reason) == (False, "stopping")
    elif phase.name != "read":  # a read is no sync
        assert until(lambda: "data-sync has been running" in health(broker)[2], 10), health(broker)
        assert not health(broker)[1]
    stranger.raw.start_call(2)
    assert not stranger.has_answer(0.02)
    assert phase.name == "idle mark" or not caller.has_answer()
    held.set()
    if pair is not None:
        assert caller.answer(pair) == (StorageFull.code if phase.fixed else 0)
    if phase.name == "read":
        message = caller.raw.receive(10)
        assert message is not None
        assert message[0][0][1] == 0
    assert phase.name == "stop" or stranger.has_answer(10)
    assert broker.stop() == 0, (broker.lines, broker.crash)
    caller.close()
    stranger.close()


@pytest.mark.parametrize("number", [ENOSPC, EDQUOT, EIO, EROFS, EINTR])
def test_every_error_of_a_sync_is_told_as_eio(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec §6.5, §8: what a sync lost can't be taken back, even if it says that there was no room."""
    disk = RealDisk(tmp_path)
    disk.make_folder("quarantine")
    file = disk.create("a")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "fdatasync", fail)
    for sync in (file.sync, file.datasync, disk.sync_folder, lambda: disk.sync_folder("quarantine")):
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            sync()
        assert told.value.errno == EIO
    monkeypatch.undo()
    file.close()
    disk.close()


CALLS = {
    "append": "write group, datasync segment",
    "append that prepares": "write zeros, datasync segment, write group, datasync segment",
    "rollback": "truncate segment, sync segment",
    "roll": "create spare, write spare, sync spare, sync_folder folder, write seal, truncate segment, sync segment, "
    "write header, sync spare, rename segment, sync_folder folder, open segment, write marks, datasync marks, "
    "write group, datasync segment",
    "mark before the answer": "write marks, datasync marks",
    "idle mark": "write marks, datasync marks",
    "preparing": "write zeros, datasync segment, create spare, write spare, sync spare, sync_folder folder",
    "stop": "truncate segment, sync segment, write marks, datasync marks",
}


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase.name in CALLS], ids=lambda phase: phase.name)
def test_the_calls_of_a_phase_are_those_that_the_spec_says_in_this_order(phase: Phase, bench: Bench) -> None:
    """Spec §6: else the matrix would let a sync that is not made not fail. Starts: test_system_calls.py."""
    assert ", ".join(f"{step.op} {step.target}" for _, step in bench.steps(phase)) == CALLS[phase.name]


def test_a_read_that_the_kernel_cuts_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short read of the matrix: only the end of a file ends it."""
    disk = RealDisk(tmp_path)
    file = disk.create("a")
    file.write(0, bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, offset: pread(descriptor, min(count, 7), offset))
    assert file.read(3, 80) == bytes(range(3, 83))
    assert file.read(90, 80) == bytes(range(90, 100))
    monkeypatch.undo()
    file.close()
    disk.close()


def test_the_whole_matrix_was_run(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    """Last: no cell that the phases have is left out, and how many cases came to which end."""
    module = [item for item in request.session.items if item.path == request.path]
    if len(module) < len(PHASES) * len(KINDS):
        pytest.skip("only a part of the matrix was chosen")
    for op in ("write", "datasync", "sync", "sync_folder", "open", "create", "rename", "truncate", "read"):
        for kind in ("EIO", "ENOSPC", "EROFS", "EINTR", "hang", *(["short"] if op == "write" else [])):
            assert any(cell[1:] == (op, kind) for cell in cells), f"{kind} of {op}"
    with capsys.disabled():
        ends = "; ".join(f"{count} {outcome.value}" for outcome, count in counted.most_common())
        print(f"\nfault matrix: {counted.total()} cases in {len(cells)} cells: {ends}")
