"""From a configuration to a running broker and an exit code (spec §16)."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from tidelog.errors import CorruptLog, InvalidHeader, StorageFull

from .config import Config
from .disk import Locked, RealDisk
from .endpoints import Endpoint, EndpointTaken, UnsafeEndpoint, WrongEndpoint, default_endpoint, parse_endpoint
from .files import Replay
from .health import Health
from .log import FailStop
from .progress import Progress
from .server import Server
from .store import Store

EXIT_USAGE, EXIT_CORRUPT, EXIT_TAKEN, EXIT_IO, EXIT_FULL, EXIT_UNSAFE = 64, 65, 73, 74, 75, 78
REMOTE_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs")


def serve(config: Config) -> int:
    """Run a broker until it is told to stop; returns its exit code, one line on stderr saying why unless it is 0."""
    # Everything that the broker makes is its owner's alone: sockets, segments, locks.
    os.umask(0o077)
    # Each connection is a descriptor, and libzmq aborts the process when there is none left.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _serve(config)
    except (CorruptLog, InvalidHeader) as error:
        return _say(str(error), EXIT_CORRUPT)
    except Locked as error:
        return _say(f"{error}: one broker serves a log", EXIT_TAKEN)
    except EndpointTaken as error:
        return _say(str(error), EXIT_TAKEN)
    except FailStop as error:
        return _say(f"the disk failed, so the broker ends: {error}", EXIT_IO)
    except StorageFull as error:
        return _say(str(error), EXIT_FULL)
    except UnsafeEndpoint as error:
        return _say(str(error), EXIT_UNSAFE)
    except WrongEndpoint as error:
        return _say(str(error), EXIT_USAGE)


def _say(text: str, code: int) -> int:
    _tell(text)
    return code


def _tell(text: str) -> None:
    print(f"tidelog: {text}", file=sys.stderr, flush=True)


def _serve(config: Config) -> int:
    endpoints = [parse_endpoint(text) for text in config.bind or (default_endpoint(config.data, os.environ),)]
    salvage = config.flags["salvage"]
    try:
        if not salvage:
            _make_directory(config.data)
        disk = RealDisk(config.data)
    except OSError as error:
        return _say(f"{config.data}: {error.strerror}", EXIT_IO)
    kind = file_system(config.data)
    if kind.startswith(REMOTE_FILE_SYSTEMS) and not config.flags["accept_file_system"]:
        return _say(
            f"{config.data} lies on {kind}, which does not keep the order of writes that the log needs; "
            "use a local disk, or insist with --accept-file-system",
            EXIT_UNSAFE,
        )
    disk.lock()
    around = Progress(disk, time.monotonic, _tell).around
    if salvage:
        store = _salvage(disk, config, around)
    else:
        store = Store(disk, config.log_settings, os.urandom, config.index_settings, around)
    for endpoint in endpoints:
        endpoint.take()
    for warning in store.log.report.warnings:
        _tell(f"warning: {warning}")
    # The index is long-lived: collections must not walk it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 8_192)
    try:
        server = Server(config, store, context)
        return _run(server, context, endpoints)
    finally:
        context.destroy(linger=200)


def _salvage(disk: RealDisk, config: Config, around: Callable[[Replay], Replay]) -> Store:
    """What is good of a log, to be read only. Raises CorruptLog when nothing is."""
    store = Store.inspect(disk, config.log_settings, around)
    damage = store.log.damage
    if not store.log.segments():
        raise damage or CorruptLog("there is nothing to salvage: the log holds no segment", "", 0)
    store.log.report.warnings.append(
        f"read-only, nothing is changed: positions {store.index.first_position} to {store.index.head - 1} are served"
        + (f"; {damage.text}" if damage else "; the log is not damaged, a start without --salvage would take it")
    )
    return store


def _run(server: Server, context: zmq.Context[zmq.Socket[bytes]], endpoints: list[Endpoint]) -> int:
    try:
        server.bind(endpoints)
        health = Health(server, context, endpoints)
        server.broker.endpoints = [[row.request, row.publish, row.health] for row in endpoints]
    except zmq.ZMQError as error:
        code = EXIT_TAKEN if error.errno == zmq.EADDRINUSE else EXIT_USAGE
        return _say(f"{', '.join(row.request for row in endpoints)}: {error.strerror}", code)
    health.start()
    print(f"ready {' '.join(row.request for row in endpoints)} head {server.store.index.head}", flush=True)
    try:
        server.run()
    finally:
        health.stop()
        server.close_sockets()
    return 0


def _make_directory(path: Path) -> None:
    """Create the directory and its parents, their names durable."""
    missing = []
    at = path.absolute()
    while not at.exists():
        missing.append(at)
        at = at.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/self/mountinfo names it; "" if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        rows = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for row in rows:
        left, _, right = row.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""
