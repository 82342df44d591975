"""Addresses: where a broker listens, and the siblings of each (spec §16).

ipc paths are guarded by a lock file beside them, for a second bind of an ipc path succeeds and steals it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tidelog.limits import IPC_PATH_BYTES_MAX

HEALTH_SUFFIX, PUBLISH_SUFFIX = ".health", ".pub"


class WrongEndpoint(ValueError):
    """The address can't be used; says why."""


class UnsafeEndpoint(ValueError):
    """The address would be open to others (exit 78)."""


class EndpointTaken(Exception):
    """Another broker listens there (exit 73)."""


@dataclass(slots=True)
class Endpoint:
    """One address with its siblings, as HELLO names them; complete once bound."""

    request: str
    publish: str = ""
    health: str = ""
    _lock: int = field(default=-1, repr=False)

    @property
    def path(self) -> Path | None:
        """The socket's path, of an ipc endpoint."""
        return Path(self.request[6:]) if self.request.startswith("ipc://") else None

    def take(self) -> None:
        """Guard an ipc path against other brokers. Raises EndpointTaken."""
        path = self.path
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise WrongEndpoint(f"{self.request}: {error.strerror}: {error.filename}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise EndpointTaken(f"{self.request} is in use by another broker") from None

    def bind(self, requests: Any, publish: Any) -> None:
        """Bind both sockets; learns the port of a tcp sibling."""
        requests.bind(self.request)
        self.request = requests.last_endpoint.decode()
        if self.path is not None:
            self.publish = self.request + PUBLISH_SUFFIX
            publish.bind(self.publish)
        else:
            publish.bind(f"{self.request.rpartition(':')[0]}:*")
            self.publish = publish.last_endpoint.decode()

    def bind_health(self, health: Any) -> None:
        if self.path is not None:
            self.health = self.request + HEALTH_SUFFIX
            health.bind(self.health)
        else:
            health.bind(f"{self.request.rpartition(':')[0]}:*")
            self.health = health.last_endpoint.decode()


def parse_endpoint(text: str) -> Endpoint:
    """Check an address. Raises WrongEndpoint or UnsafeEndpoint."""
    scheme, _, rest = text.partition("://")
    if scheme == "ipc":
        size = len(os.fsencode(rest + HEALTH_SUFFIX))
        if not rest.startswith("/"):
            raise WrongEndpoint(
                f"{text}: an ipc endpoint has an absolute path, as in ipc:///run/user/1000/tidelog/broker"
            )
        if size > IPC_PATH_BYTES_MAX:
            raise WrongEndpoint(
                f"{text}: the path with {HEALTH_SUFFIX} has {size} bytes, sockets allow {IPC_PATH_BYTES_MAX}; "
                "choose a shorter one with --bind"
            )
        return Endpoint(text)
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not ((port.isdecimal() and int(port) < 65_536) or port == "*"):
        raise WrongEndpoint(f"{text}: an endpoint is ipc:///absolute/path or tcp://127.0.0.1:port")
    try:
        loopback = ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise UnsafeEndpoint(f"{text} can be reached from other hosts and CURVE is not on: listen on 127.0.0.1 or ipc")
    return Endpoint(text.replace("localhost", "127.0.0.1"))


def default_endpoint(data: Path, environment: Mapping[str, str]) -> str:
    """Where a broker listens when nothing is said: the user's runtime directory, else beside its data."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        return f"ipc://{Path(runtime).absolute()}/tidelog/broker"
    return f"ipc://{data.absolute()}/run/broker"
