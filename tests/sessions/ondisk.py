"""The same requests over a log on a disk in memory, and what a start finds of them on every way it can take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from sessions.driver import Driver
from sessions.memory import Asked
from sessions.model import Model
from support.simdisk import Image, SimDisk
from tidelog_broker import checkpoints
from tidelog_broker.core.appender import Appender
from tidelog_broker.store import Store
from truncate.driven import INDEXED, SMALL, Driven, answers, without_index

SESSIONS_MAX = CURSORS_MAX = 3
SETTINGS = replace(INDEXED, sessions_max=SESSIONS_MAX, cursors_max=CURSORS_MAX)
RESULTS_MAX = 12


class OnDisk(Asked):
    """A log that is driven without a broker."""

    def __init__(self, driven: Driven | None = None) -> None:
        self.driven = driven or Driven(SimDisk(), SMALL, SETTINGS)
        self.appender: Appender = self.driven.appender
        self.now = self.store.index.recorded_at

    @property
    def store(self) -> Store:
        return self.driven.store

    @property
    def image(self) -> Image:
        """What a kill leaves."""
        return self.driven.sim.image()

    def commit(self) -> None:
        """The sealed group is durable; all that is staged, when none is."""
        appender = self.appender
        group = appender.sealed or appender.seal()
        appender.commit(*self.store.log.commit(group.parts, len(group.staged), group.next_position))

    def truncate(self, position: int) -> None:
        """Everything before it is gone, and its segments with it, behind a base."""
        self.appender.truncate((15, 1, 0, position), self.now)
        if self.appender.is_pending:
            self.commit()
        self.driven.clear()


class Run(Driver):
    """A log on a disk, with the model of what is in it. `disk`: go on with one that is there."""

    def __init__(self, model: Model | None = None, disk: SimDisk | None = None) -> None:
        self.log = OnDisk(Driven(disk, SMALL, SETTINGS) if disk else None)
        super().__init__(model or Model(SESSIONS_MAX, CURSORS_MAX, RESULTS_MAX), self.log, self.log, old_max=0)

    def group(self, rnd: Random) -> None:
        """One group of some requests; or two, of which the second is collected while the first is under way."""
        for _ in range(rnd.randint(1, 5)):
            self.step(rnd)
            if not rnd.randrange(6):
                self.seal()
        self.settle()

    def others(self, appends: int) -> None:
        """So many appends of nobody's session."""
        for number in range(appends):
            self.send(None, None, (self.new("others", 1 + number % 3),))
            if number % 5 == 0:
                self.settle()
        self.settle()

    def truncate(self, position: int | None = None) -> None:
        """Before a position, or all there is."""
        self.settle()
        self.log.truncate(self.log.store.index.head if position is None else position)

    def again(self) -> None:
        """A kill and a start."""
        self.log = OnDisk(Driven(SimDisk(self.log.image), SMALL, SETTINGS))
        self.asked = self.groups = self.log
        self.rollback()

    def found(self, image: Image) -> Run:
        """What a start makes of such files, over the same model."""
        model = self.model
        durable = Model(model.sessions_max, model.cursors_max, model.results_max)
        durable.durable, durable.now = model.durable.copy(), model.durable.copy()
        run = Run(durable, SimDisk(image))
        run.ids = self.ids
        return run


def ways(image: Image) -> Iterator[tuple[str, Image]]:
    """The ways that a start may take through the same log."""
    yield "as it is", image
    yield "the log alone", without_index(image)
    broken = {name: _broken(data) if _is_checkpoint(name) else data for name, data in image.items()}
    if broken != image:
        yield "checkpoints damaged", broken
    saved = sorted(filter(_is_checkpoint, image))
    if len(saved) > 1:
        yield "the older checkpoint", {**image, saved[-1]: _broken(image[saved[-1]])}


def _is_checkpoint(name: str) -> bool:
    return name.startswith(f"{checkpoints.FOLDER}/checkpoint-")


def _broken(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def same(run: Run, *, deep: bool = False) -> None:
    """Every way leads to the index and to the sessions and cursors of the log that went on; `deep`: results are told, too."""
    wanted = answers(run.log.store)
    for way, image in ways(run.log.image):
        found = run.found(image)
        assert answers(found.log.store) == wanted, way
        found.holds()
        if deep:
            found.repeats()
        found.log.store.log.abandon()
