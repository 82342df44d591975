"""Broker and client against a list, by Hypothesis: see broker_machine.py. TIDELOG_MACHINE_EXAMPLES makes a longer run."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test
from machines.broker_machine import BrokerMachine
from machines.runs import run_settings
from support.process import BrokerProcess

EXAMPLES = 35
STEPS = 25


@pytest.mark.timeout(3_600)
def test_broker_and_client_are_a_list_over_kills_stops_and_stillness(broker: BrokerProcess) -> None:
    """Spec §§3, 4, 6, 9, 10: what was acknowledged is there once, in its place, for every reader and subscriber."""

    class Machine(BrokerMachine):
        pass

    Machine.broker = broker
    run_state_machine_as_test(Machine, settings=run_settings(EXAMPLES, STEPS))
