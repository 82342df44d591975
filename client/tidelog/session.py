"""Session: a producer whose appends are in the log exactly once and in order (spec §5). Made by `Client.session`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from .calls import put_back
from .errors import DeadlineExceeded, OutcomeUnknown, SessionFenced
from .exchange import Call, last_position
from .link import Future
from .messages import ANY, Appended, Event, ExpectedVersion, Write
from .producer import InDoubt, Producer
from .wire import OPEN_SESSION, WAIT_DURABLE

if TYPE_CHECKING:
    from uuid import UUID

    from .appending import Appends, Durability
    from .consuming import CursorMove


T = TypeVar("T")


class Session:
    """Appends get serials 1, 2, 3 … in the order of the calls. Many may be under way, from many threads.

    A refusal is raised by the append that it was about, NotApplied by those that were sent behind it, and the session goes on
    from there. Lost answers and connections are seen to. When another holder opens the session, everything raises SessionFenced.
    """

    def __init__(self, client: Appends, producer: Producer) -> None:
        self._client = client
        self._link = client._link
        self._producer = producer
        producer.flush = self._flush
        self._asking = Lock()

    @property
    def name(self) -> str:
        return self._producer.name

    @property
    def epoch(self) -> int:
        """Which opening of the session this is."""
        return self._producer.epoch

    @property
    def last_serial(self) -> int:
        """The newest serial that the broker has taken, as far as is known here: what was sent before needs no repeat."""
        return self._producer.last

    def append(
        self,
        stream: str | UUID,
        events: Event | Iterable[Event],
        expected_version: ExpectedVersion = ANY,
        durability: Durability = "durable",
        timeout: float | None = None,
        *,
        cursor: CursorMove | None = None,
    ) -> Appended:
        """`Client.append` with the next serial. Raises what that raises, NotApplied and SessionFenced."""
        now = monotonic()
        call = self._client._append_call(
            stream, events, expected_version, durability, timeout, now, cursor, self._producer
        )
        return self._submit(call, now, waits=True).result()

    def append_nowait(
        self,
        stream: str | UUID,
        events: Event | Iterable[Event],
        expected_version: ExpectedVersion = ANY,
        durability: Durability = "durable",
        timeout: float | None = None,
        *,
        cursor: CursorMove | None = None,
    ) -> Future[Appended]:
        """`Client.append_nowait` with the next serial. Waits only behind a call of this session that ended in doubt, until the
        broker has told where the session stands."""
        now = monotonic()
        call = self._client._append_call(
            stream, events, expected_version, durability, timeout, now, cursor, self._producer
        )
        return self._submit(call, now, waits=False)

    def append_many(
        self,
        writes: Iterable[Write],
        durability: Durability = "durable",
        timeout: float | None = None,
        *,
        cursor: CursorMove | None = None,
    ) -> list[Appended]:
        """`Client.append_many` with the next serial."""
        now = monotonic()
        call = self._client._many_call(writes, durability, timeout, now, cursor, self._producer)
        return self._submit(call, now, waits=True).result()

    def _submit(self, call: Future[T], now: float, *, waits: bool) -> Future[T]:
        try:
            (self._link.submit if waits else self._link.submit_unattended)(call, now)
        except InDoubt:
            self._submit_behind_doubt(call)
        except BaseException:
            put_back(call)
            raise
        return call

    def _submit_behind_doubt(self, call: Future[T]) -> None:
        try:
            while True:
                self._settle_doubt(call.deadline)
                try:
                    return self._link.submit_unattended(call, monotonic())
                except InDoubt:
                    pass  # another thread's call ended in doubt meanwhile
        except BaseException:
            put_back(call)
            raise

    def _settle_doubt(self, until: float) -> None:
        """A call of this session ended in doubt: ask the broker where the session stands."""
        try:
            if self._producer.in_doubt:
                self._resolve(until)
        except DeadlineExceeded as error:
            text = (
                f"an append of this session ended in doubt, and the broker does not tell where it stands: {error.text}"
            )
            raise DeadlineExceeded(text) from None

    def _resolve(self, until: float) -> None:
        """Let nothing more be sent, wait for what is under way, ask the broker, and go on from there."""
        producer, link = self._producer, self._link
        if not self._asking.acquire(timeout=max(until - monotonic(), 0.0)):
            raise DeadlineExceeded("another thread still asks the broker where this session stands")
        try:
            link.locked(producer.doubt)
            while True:
                while calls := link.locked(lambda: list(producer.calls.values())):
                    for call in calls:
                        link.wait(call, max(until - monotonic(), 0.0))
                try:
                    last = self._ask(until)
                except SessionFenced as error:
                    link.locked(partial(producer.fenced, error))
                    raise
                if link.locked(partial(producer.resolved, last)):
                    return
        finally:
            self._asking.release()

    def _ask(self, until: float) -> int:
        """The last serial that the broker has taken, if our epoch is still in force. Raises SessionFenced."""
        fields = (self._producer.name, self._producer.epoch)
        return self._client._call(OPEN_SESSION, fields, _pair, max(until - monotonic(), 0.0)).result()[1]

    def _flush(self, until: float) -> None:
        """Wait until all that was accepted is durable; what was lost is sent again. Raises what ended the session or lost it."""
        producer, link = self._producer, self._link
        while True:
            for call in link.locked(producer.under_way_again):
                link.wait(call, max(until - monotonic(), 0.0))
            last = link.locked(lambda: producer.accepted[-1] if producer.accepted else None)
            if last is None:
                break
            boot_id = b"" if last.hello is None else last.hello.boot_id
            fields = (boot_id, last.reply[3], last_position(last.reply))
            try:
                self._client._call(WAIT_DURABLE, fields, _pair, max(until - monotonic(), 0.0)).result()
                link.locked(partial(producer.confirm, last.serial))
            except OutcomeUnknown:
                try:
                    self._resolve(until)
                except SessionFenced as error:
                    raise SessionFenced(error.text, *error.facts, maybe_applied=True) from None
        lost, producer.lost = producer.lost, None
        link.locked(partial(producer.confirm, 0))
        if lost is not None:
            raise lost


def opened(client: Appends, name: str, resume: int | None, timeout: float | None) -> Session:
    """Open a session, or resume it (`Client.session`)."""
    epoch, last = client._call(OPEN_SESSION, (name, resume), _pair, timeout).result()
    return Session(client, Producer(client._link.exchange, name, epoch, last))


def _pair(call: Call) -> tuple[int, int]:
    return call.reply[2], call.reply[-1]
