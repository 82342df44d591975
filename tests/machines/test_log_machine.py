"""The log against a list, by Hypothesis: see log_machine.py. TIDELOG_MACHINE_EXAMPLES makes a longer run with new examples."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test
from machines.log_machine import LogMachine
from machines.runs import run_settings
from tidelog_broker.core import pages

EXAMPLES = 500
STEPS = 50


@pytest.mark.timeout(3_600)
def test_the_log_is_a_list_whatever_happens_to_disk_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec §§3, 4, 6, 8: append, repeat, conflict, crash, recover, roll, no room, failed syncs, clean stop."""
    # Small pages, so that reads of so few events still take several.
    monkeypatch.setattr(pages, "PAGE_BYTES_MAX", 2_500)
    monkeypatch.setattr(pages, "EXTENTS_MAX", 4)
    run_state_machine_as_test(LogMachine, settings=run_settings(EXAMPLES, STEPS))
