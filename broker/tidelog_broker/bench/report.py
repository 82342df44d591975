"""Measurements → medians, ratios, a table or JSON lines. PURE."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One repetition: what was measured and its limit in the same minute; `extra` is for the note."""

    value: float
    limit: float
    extra: dict[str, float]


class Target(NamedTuple):
    """What the ratio (or, without a limit, the value) should be: at most or at least."""

    bound: float
    at_most: bool

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"

    def met(self, number: float) -> bool:
        return number <= self.bound if self.at_most else number >= self.bound


class Row(NamedTuple):
    """One line of the report. `limit` names what the values are compared with, "" for nothing."""

    workload: str
    what: str
    unit: str
    limit: str
    samples: Sequence[Sample]
    target: Target | None = None

    @property
    def value(self) -> float:
        return median(sample.value for sample in self.samples)

    @property
    def limit_value(self) -> float | None:
        return median(sample.limit for sample in self.samples) if self.limit else None

    @property
    def ratio(self) -> float | None:
        """The median of the pairs' ratios, for what slows the machine slows both halves of a pair."""
        return median(sample.value / sample.limit for sample in self.samples) if self.limit else None

    @property
    def extra(self) -> dict[str, float]:
        return {name: median(sample.extra[name] for sample in self.samples) for name in self.samples[0].extra}

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.target.met(self.value if self.ratio is None else self.ratio)

    def as_json(self) -> str:
        return json.dumps(
            {
                "workload": self.workload, "what": self.what, "unit": self.unit, "value": self.value,
                "limit": self.limit or None, "limit_value": self.limit_value, "ratio": self.ratio,
                "target": str(self.target) if self.target else None, "met": self.met, **self.extra,
                "samples": [{"value": sample.value, "limit": sample.limit, **sample.extra} for sample in self.samples],
            },
            ensure_ascii=False,
        )  # fmt: skip


def percentile(values: Sequence[int], percent: float) -> float:
    """The value below which `percent` of them lie."""
    ordered = sorted(values)
    return float(ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)])


def number(value: float | None) -> str:
    """For people: thousands separated, three digits at least."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of equal columns."""
    lines = [("workload", "", "value", "limit", "ratio", "target", "")]
    for row in rows:
        ratio = row.ratio
        limit = f"{number(row.limit_value)} {row.limit}" if row.limit else ""
        verdict = "" if row.met is None else "met" if row.met else "MISSED"
        note = ", ".join([verdict] * bool(verdict) + [f"{name} {number(value)}" for name, value in row.extra.items()])
        lines.append(
            (
                row.workload, row.what, f"{number(row.value)} {row.unit}", limit,
                "" if ratio is None else f"{ratio:.2f}", str(row.target or ""), note,
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def facts_line(facts: dict[str, Any]) -> list[str]:
    return [f"{name}: {number(value) if isinstance(value, float) else value}" for name, value in facts.items()]
