"""One run from its directory to its report; leaves neither processes nor files behind."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack
import zmq

from ..serve import EXIT_IO, EXIT_USAGE, file_system
from ..version import VERSION
from .bare import sync_times, write_rate
from .processes import Processes, WorkerFailed
from .report import Row, facts_line, percentile, table
from .workloads import DEFAULT, SYNCS, WORKLOADS, Bench

WRITE_BYTES = 256 << 20
NO_DISKS = ("tmpfs", "ramfs")
EXIT_INTERRUPTED = 130


def measure(workloads: Sequence[str], repeat: int, *, quick: bool, as_json: bool, data: Path) -> int:
    """Run `workloads` (all if empty) → the exit code."""
    names = _names(workloads)
    if names is None:
        return EXIT_USAGE
    try:
        with _terminable(), _folders(data) as (folder, sockets), Processes(sockets) as processes:
            facts = machine(folder, quick)
            _print([json.dumps({"machine": facts}, ensure_ascii=False)] if as_json else facts_line(facts))
            if facts["file system"] in NO_DISKS:
                _say(f"{data} lies on {facts['file system']}, which is no disk: give a directory on one with --data")
            bench = Bench(processes, folder, repeat, quick, _say)
            rows: list[Row] = []
            for name in names:
                made = bench.run(name)
                rows += made
                if as_json:
                    _print([row.as_json() for row in made])
            if not as_json:
                _print(["", *table(rows)])
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    except WorkerFailed as error:
        _say(str(error))
        return EXIT_IO
    except OSError as error:
        _say(f"{error.filename or data}: {error.strerror}")
        return EXIT_IO
    return 0


def _names(workloads: Sequence[str]) -> list[str] | None:
    known = {name.lower(): name for name in WORKLOADS} | {"w6max": "W6"}
    names = []
    for name in workloads:
        if name.lower() not in known:
            _say(f"there is no workload {name}; there are {', '.join(WORKLOADS)}")
            return None
        names.append(known[name.lower()])
    return list(dict.fromkeys(names)) or DEFAULT


def machine(folder: Path, quick: bool) -> dict[str, Any]:
    """What the figures were taken on."""
    syncs = sync_times(folder, 50 if quick else 2 * SYNCS)
    return {
        "version": VERSION,
        "processors": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "software": (
            f"CPython {platform.python_version()}, pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}, "
            f"msgpack {'.'.join(map(str, msgpack.version))}, Linux {platform.release()}"
        ),
        "directory": str(folder.parent),
        "file system": file_system(folder),
        "data-sync p50 µs": percentile(syncs, 50) / 1000,
        "data-sync p99 µs": percentile(syncs, 99) / 1000,
        "sequential write MB/s": write_rate(folder, WRITE_BYTES // 16 if quick else WRITE_BYTES) / 1e6,
    }


@contextmanager
def _folders(data: Path) -> Iterator[tuple[Path, Path]]:
    """(for logs, for sockets), both new; a socket's path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="tidelog-bench-", dir=data.absolute()))
    try:
        sockets = Path(tempfile.mkdtemp(prefix="tlb-"))
        try:
            yield folder, sockets
        finally:
            shutil.rmtree(sockets, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run like Ctrl-C, and so its processes too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: then it is not ours to decide
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)


def _say(text: str) -> None:
    print(f"tidelog bench: {text}", file=sys.stderr, flush=True)
