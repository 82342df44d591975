"""Every change that a process of ours makes through the disk's seam, seen before it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.killer import OF_DISK, OF_FILE
from tidelog_broker.disk import RealDisk, RealFile

Look = Callable[[str, str, tuple[Any, ...]], None]
"""(call, the file's name or the folder's path, arguments); may raise, or end the process."""


@contextmanager
def watched(look: Look) -> Iterator[None]:
    """`look` is called before each call that changes something, or opens."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, names in ((RealDisk, OF_DISK), (RealFile, OF_FILE)):
            for name in names:
                patch.setattr(kind, name, _wrapped(name, getattr(kind, name), look))
        yield


def _wrapped(name: str, original: Callable[..., Any], look: Look) -> Callable[..., Any]:
    def call(thing: Any, *arguments: Any, **more: Any) -> Any:
        look(name, thing.name if isinstance(thing, RealFile) else str(thing.path), arguments)
        return original(thing, *arguments, **more)

    return call
