"""Logs of every shape, for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from migrate.seed import Appends, Given


def logs() -> st.SearchStrategy[Appends]:
    text = st.text(min_size=1, max_size=8).map(str.encode)
    event: Any = st.builds(
        Given,
        st.integers(0, 3).map(lambda number: bytes([number]) * 16),
        st.binary(min_size=16, max_size=16),
        text.filter(lambda kind: not kind.startswith(b"$")),
        st.binary(max_size=9),
        st.binary(max_size=40),
    )
    return st.lists(st.tuples(st.integers(0, 2**50), st.lists(event, min_size=1, max_size=6)), max_size=6)
