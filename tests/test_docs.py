"""What README and docs show is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support.command import COMMAND
from support.process import BrokerProcess
from tidelog_broker.config import FLAGS, NUMBERS

ROOT = Path(__file__).resolve().parent.parent


def block(language: str, page: str, with_text: str) -> str:
    """The fenced block of a page that contains a text."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return next(found for found in blocks if with_text in found)


def test_the_python_of_the_readme_runs(broker: BrokerProcess) -> None:
    program = block("python", "README.md", "client.append").replace("ipc:///tmp/tide/broker", broker.endpoint)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "somebody was faster: orders/17 is at version 2",
        "0 0 placed b'{\"total\": 4}'",
        "1 1 paid b''",
        "2 2 sent b''",
        "next time begin with 1",
    ]


def test_the_commands_of_the_readme_run(broker: BrokerProcess, folder: Path) -> None:
    tool = folder / "tidelog"
    tool.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    tool.chmod(0o700)
    lines = block("sh", "README.md", "tidelog append").splitlines()
    assert lines[:2] == ["pip install .", "tidelog serve --data /tmp/tide/log --bind ipc:///tmp/tide/broker &"]
    script = "\n".join(["set -e", f"PATH={folder}:$PATH", *lines[2:]]).replace(
        "ipc:///tmp/tide/broker", broker.endpoint
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "orders/18@1  paid" in done.stdout


def test_the_settings_are_those_of_operating_md() -> None:
    page = (ROOT / "docs" / "OPERATING.md").read_text()
    rows = [
        tuple(map(str.strip, row.strip("|").split("|"))) for row in re.findall(r"^\| `\w+` \|.*$", page, re.MULTILINE)
    ]
    numbers = [row for row in rows if len(row) == 6]
    assert numbers == [
        (f"`{row.name}`", str(row.default), str(row.minimum), str(row.maximum), row.unit, row.help) for row in NUMBERS
    ]
    assert [row for row in rows if row[0].strip("`") in FLAGS] == [(f"`{name}`", text) for name, text in FLAGS.items()]


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
