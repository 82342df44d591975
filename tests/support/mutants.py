"""Faults seeded into the real code: a piece of a function's source is replaced while a test runs.

The piece must be there exactly once, so that a mutant that no longer fits the code says so. `CAUGHT` collects what found each
mutant, for the list that the run prints.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

import pytest

Piece = tuple[Any, str, str, str]
"""(owner, function, what is replaced, by what)."""

CAUGHT: dict[str, str] = {}
"""Mutant → what caught it, in the order of the tests."""


def mutate(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace `old` by `new` in the source of owner.name for the rest of the test."""
    function = inspect.getattr_static(owner, name)
    plain = inspect.unwrap(getattr(function, "__func__", function))
    source = getattr(plain, "mutant_source", None) or textwrap.dedent(inspect.getsource(plain))
    assert source.count(old) == 1, f"{name} has {source.count(old)} times {old!r}"
    module = sys.modules[plain.__module__]
    scope = dict(vars(module))
    source = source.replace(old, new)
    exec(compile("from __future__ import annotations\n" + source, f"<mutant {name}>", "exec"), scope)
    mutant = scope[name]
    vars(getattr(mutant, "__func__", mutant))["mutant_source"] = source
    if inspect.ismodule(owner):
        # The names that other modules imported must change too.
        for other in list(sys.modules.values()):
            if getattr(other, "__name__", "").startswith("tidelog_broker") and getattr(other, name, None) is plain:
                monkeypatch.setattr(other, name, mutant)
    else:
        monkeypatch.setattr(owner, name, mutant)
