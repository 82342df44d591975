"""How long the machines run: the same examples each time in CI, more and new ones by TIDELOG_MACHINE_EXAMPLES."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def run_settings(examples: int, steps: int) -> settings:
    """Settings of a machine's run; a failure prints the steps and the blob that repeats them."""
    wanted = os.environ.get("TIDELOG_MACHINE_EXAMPLES", "")
    return settings(
        max_examples=int(wanted) if wanted else examples,
        stateful_step_count=steps,
        derandomize=not wanted,
        deadline=None,
        database=None,
        print_blob=True,
        # A step is whole reads of the log, or a restart: slow is what they are, and the examples are counted.
        suppress_health_check=[HealthCheck.too_slow],
    )
