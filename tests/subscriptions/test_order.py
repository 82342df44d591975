"""What a subscription delivers: history, then live, from every start, of a stream, a category or everything."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from subscriptions.helpers import PATIENCE_S, Follower, Worker, fill, small
from support.process import BrokerProcess, until
from support.strace import Attached
from tidelog import ANY, CaughtUp, Checkpoint, Client, Event, InvalidArgument, Write
from tidelog.pager import Pager
from tidelog.reading import Pages
from tidelog.wire import CATEGORY, EVERYTHING, STREAM

Follow = Callable[..., Follower]
SCOPES: list[dict[str, Any]] = [{}, {"category": "c"}, {"stream": "c/1"}]
SCOPE_NAMES = ["everything", "category", "stream"]
SLOW_BEAT = ("--heartbeat-ms", "60000")
PROMPT = 20.0
"""Far less than the heartbeat of SLOW_BEAT: what comes in this time was published, not found by a heartbeat."""


def expected_of(client: Client, start: int = 0, **options: Any) -> list[Any]:
    """What a subscription has to deliver, by reading."""
    if "stream" in options:
        return list(client.read_stream(options["stream"], start))
    return list(client.read_all(start, **options))


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_history_of_every_length_around_a_page_comes_in_order_then_one_caught_up_then_live(
    client: Client, follow: Follow, scope: dict[str, Any]
) -> None:
    """T-30: 0, 1, one page less one, one page, one page and one, many. The page is the one that the broker cuts."""
    kind, name = (STREAM, "c/1") if "stream" in scope else (CATEGORY, "c") if scope else (EVERYTHING, "")
    empty = follow(client, markers=True, **scope)
    assert until(lambda: empty.caught_up)
    for _ in range(620):
        client.append("c/1", Event("t", b"p" * 4000))
    first = Pager(client, Pages(kind, name)).next()
    assert first is not None
    page = len(first)
    assert 100 < page < 300
    followers = {}
    for history in (0, 1, page - 1, page, page + 1, 2 * page, 620):
        followers[history] = follow(client, markers=True, start=620 - history, checkpoint_events=10**6, **scope)
    for follower in followers.values():
        assert until(lambda follower=follower: follower.caught_up)
    live = [client.append("c/1", Event("t", b"live")).first_position for _ in range(30)]
    assert live == list(range(620, 650))
    for history, follower in followers.items():
        assert follower.wait(history + 30)
        places = [item.position for item in follower.items]
        start = 620 - history
        assert places == [*range(start, 620), 620, *range(620, 650)], history
        assert [type(item) for item in follower.items].index(CaughtUp) == history
        assert len(follower.markers) == 1
    assert empty.wait(650)
    assert empty.positions == list(range(650))
    assert type(empty.items[0]) is CaughtUp


@pytest.mark.parametrize("pages", ["whole", "many small batches"])
def test_every_field_of_a_subscribed_event_is_what_a_read_gives(client: Client, follow: Follow, pages: str) -> None:
    """T-30: history and live events are the same objects of the log, whichever way they came."""
    size = 200 if pages == "whole" else 1
    for round_ in range(3):
        client.append_many(
            [
                Write("c/1", [Event("a", b"x", b"m", uuid.uuid4()), *small(size)]),
                Write("d/1", [Event("ü" * 100, bytes([round_]))]),
            ]
        )
    followers = [follow(client, **scope) for scope in SCOPES]
    for follower, scope in zip(followers, SCOPES, strict=True):
        assert follower.wait(len(expected_of(client, **scope)))
    for _ in range(3):
        client.append_many([Write("c/1", [Event("b", b"y", b"n", uuid.uuid4())]), Write("d/1", small(size))])
    for follower, scope in zip(followers, SCOPES, strict=True):
        expected = expected_of(client, **scope)
        assert follower.wait(len(expected))
        assert follower.events == expected
        assert [event.id for event in follower.events] == [event.id for event in expected]
        wanted = expected[-1].version + 1 if "stream" in scope else expected[-1].position + 1
        assert wanted <= follower.subscription.position <= (wanted if "stream" in scope else client.head())


def test_interleaved_streams_reach_each_subscriber_as_its_own_only(client: Client, follow: Follow) -> None:
    """T-51: A, B, A, C, B in history and again live; everything in position order, each stream only its own."""
    names = ["A", "B", "A", "C", "B"]
    everything = follow(client)
    single = {name: follow(client, stream=name) for name in "ABC"}
    for number, name in enumerate(names * 4):
        client.append(name, Event("t", b"%d" % number))
    late = {name: follow(client, stream=name) for name in "ABC"}
    assert everything.wait(20)
    assert everything.positions == list(range(20))
    assert [event.stream for event in everything.events] == names * 4
    backwards = list(client.read_all(backwards=True))
    assert everything.events == backwards[::-1]
    for followers in (single, late):
        for name, follower in followers.items():
            count = (names * 4).count(name)
            assert follower.wait(count)
            assert {event.stream for event in follower.events} == {name}
            assert follower.versions == list(range(count))


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_start_beyond_the_head_is_caught_up_at_once_and_delivers_nothing_below_it(
    client: Client, follow: Follow, scope: dict[str, Any]
) -> None:
    """T-32: head 5, subscribe from 100, append 200: caught up at once, first delivered is 100."""
    client.append("c/1", small(5))
    follower = follow(client, start=100, markers=True, **scope)
    assert until(lambda: follower.caught_up, PATIENCE_S)
    assert follower.items[0].position == 100
    for _ in range(47):
        client.append("c/1", small(2))
    assert client.append("c/1", small(3)).last_position == 101
    for _ in range(103):
        client.append("c/1", Event("t"))
    assert follower.wait(105)
    assert follower.positions == list(range(100, 205))
    assert follower.subscription.position == 205


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_start_inside_an_append_delivers_its_rest_only(client: Client, follow: Follow, scope: dict[str, Any]) -> None:
    """T-32: a start that is no edge of an append, in history and beyond the head."""
    client.append("c/1", small(10))
    history, ahead = follow(client, start=4, **scope), follow(client, start=14, markers=True, **scope)
    assert until(lambda: ahead.caught_up)
    client.append("c/1", small(10))
    assert history.wait(16)
    assert ahead.wait(6)
    assert history.positions == list(range(4, 20))
    assert ahead.positions == list(range(14, 20))


def test_stream_that_does_not_exist_is_caught_up_and_undisturbed_by_noise_on_a_thousand_others(
    client: Client, follow: Follow
) -> None:
    """T-34: then it begins with version 0."""
    follower = follow(client, stream="wanted/1", markers=True, checkpoint_idle=3600.0)
    assert until(lambda: follower.caught_up, PATIENCE_S)
    beyond = follow(client, stream="wanted/1", start=3, markers=True, checkpoint_idle=3600.0)
    end = follow(client, stream="wanted/1", start="end", markers=True, checkpoint_idle=3600.0)
    for part in range(4):
        for number in range(250):
            client.append_nowait(f"noise/{part}-{number}", Event("t"))
        client.append("noise/last", Event("t"))
        time.sleep(0.3)  # so that heartbeats tell of heads that are not covered
    assert [follower.items, follower.error] == [[CaughtUp(0)], None]
    client.append("wanted/1", small(4))
    for one, first in ((follower, 0), (beyond, 3), (end, 0)):
        assert one.wait(4 - first)
        assert one.versions == list(range(first, 4))
        assert one.subscription.position == 4
    assert beyond.items[0] == CaughtUp(3)


def test_first_event_of_an_absent_stream_or_category_comes_without_waiting_for_a_heartbeat(
    start_broker: Callable[..., BrokerProcess], follow: Follow
) -> None:
    """T-34: with a heartbeat of 60 s."""
    broker = start_broker(*SLOW_BEAT)
    with Client(broker.endpoint) as client:
        followers = [follow(client, stream="new/1", markers=True), follow(client, category="new", markers=True)]
        for follower in followers:
            assert until(lambda follower=follower: follower.caught_up)
        client.append("noise/1", Event("t"))
        client.append("new/1", small(2))
        for follower in followers:
            assert follower.wait(2, PROMPT)


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_live_events_come_at_once_after_caught_up_and_not_only_by_heartbeats(
    start_broker: Callable[..., BrokerProcess], follow: Follow, scope: dict[str, Any]
) -> None:
    """T-30: heartbeats every 60 s; an append at the very moment of CaughtUp, and every one after it, comes long before."""
    broker = start_broker(*SLOW_BEAT)
    with Client(broker.endpoint) as client:
        client.append("c/1", small(20))
        for round_ in range(8):
            have = 20 + 3 * round_
            follower = follow(client, start=have, markers=True, **scope)
            assert until(lambda follower=follower: follower.caught_up, every=0.0005)
            for number in range(3):
                client.append("c/1", Event("t"))
                assert follower.wait(number + 1, PROMPT), (round_, number)
            assert follower.positions == [have, have + 1, have + 2]


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_a_subscriber_that_leaves_does_not_slow_another_on_the_same_topic(
    start_broker: Callable[..., BrokerProcess], follow: Follow, scope: dict[str, Any]
) -> None:
    """T-30: the broker goes on publishing a topic while one of its subscribers is left (heartbeat 60 s)."""
    broker = start_broker(*SLOW_BEAT)
    with Client(broker.endpoint) as client, Client(broker.endpoint) as other:
        stays, leaves, dies = follow(client, **scope), follow(client, **scope), follow(other, **scope)
        client.append("c/1", Event("t"))
        for follower in (stays, leaves, dies):
            assert follower.wait(1, PROMPT)
        leaves.end()
        assert until(lambda: client.info()["topics"] > 0)
        client.append("c/1", Event("t"))
        assert stays.wait(2, PROMPT), "the first that left took the topic with it"
        other.close()
        time.sleep(0.1)  # for the broker to hear of it; no reply tells when it has
        client.append("c/1", Event("t"))
        assert stays.wait(3, PROMPT), "the second that left took the topic with it"


def test_a_new_subscriber_is_heard_by_a_broker_that_never_rests(
    start_broker: Callable[..., BrokerProcess], follow: Follow, worker: Callable[..., Worker]
) -> None:
    """T-31: heartbeats every 60 s, slow syncs, and more waiting after each than a group takes: events come promptly."""
    broker = start_broker(*SLOW_BEAT)
    floods = [
        worker("flood", broker.endpoint, stream=f"noise/{number}", window=200, size=50_000) for number in range(2)
    ]
    for flood in floods:
        assert flood.saw("flooding")
    with Attached(broker, "fdatasync:delay_enter=40000"), Client(broker.endpoint, timeout=20.0) as client:
        for round_ in range(2):
            follower = follow(client, stream=f"c/{round_}", markers=True)
            assert until(lambda follower=follower: follower.caught_up)
            for number in range(3):
                client.append(f"c/{round_}", Event("t"))
                assert follower.wait(number + 1, PROMPT), (round_, number)
            assert follower.versions == [0, 1, 2]


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_start_end_gives_only_what_comes_after_the_call(client: Client, follow: Follow, scope: dict[str, Any]) -> None:
    client.append("c/1", small(30))
    follower = follow(client, start="end", **scope)
    assert follower.subscription.position == 30
    client.append("c/1", small(3))
    assert follower.wait(3)
    assert follower.positions == [30, 31, 32]


def test_a_uuid_is_a_stream_name(client: Client, follow: Follow) -> None:
    name = uuid.uuid4()
    history, live = uuid.UUID(str(name)), follow(client, stream=name)
    client.append(name, small(2))
    late = follow(client, stream=history)
    for follower in (live, late, follow(client, stream=str(name))):
        assert follower.wait(2)
        assert {event.stream for event in follower.events} == {str(name)}


@pytest.mark.parametrize(
    "options",
    [
        {"stream": "a", "category": "c"}, {"category": "a/b"}, {"category": ""}, {"start": -1}, {"start": 2**63},
        {"start": "begin"}, {"start": True}, {"start": 1.0}, {"on_lag": "drop"}, {"types": [1]}, {"types": []},
        {"types": [str(number) for number in range(65)]}, {"stream": 5}, {"stream": b"a"}, {"stream": ""},
        {"stream": "x" * 256}, {"stream": "a\0b"}, {"stream": "\ud800"}, {"category": "c" * 256},
        {"category": "c\n"}, {"checkpoint_events": -1}, {"checkpoint_idle": -1.0},
        {"checkpoint_idle": float("nan")}, {"checkpoint_idle": 0},
    ],
)  # fmt: skip
def test_what_no_subscription_can_be_is_refused_at_the_call(client: Client, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        client.subscribe(**options)


@pytest.mark.parametrize("start", [2**63 - 1, 2**63 - 2])
@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_the_greatest_start_waits_for_ever_and_stops(
    client: Client, follow: Follow, scope: dict[str, Any], start: int
) -> None:
    follower = follow(client, start=start, markers=True, checkpoint_idle=3600.0, **scope)
    client.append("c/1", small(3))
    assert until(lambda: follower.caught_up)
    client.append("c/1", small(3))
    time.sleep(0.7)  # more than a heartbeat
    assert follower.items == [CaughtUp(start)]
    assert follower.subscription.position == start


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_position_is_the_next_one_after_every_single_event(client: Client, scope: dict[str, Any]) -> None:
    """§10: in its unit; so a consumer can store it after each event and begin there again."""
    client.append("noise/1", small(3))
    client.append("c/1", small(40))
    with client.subscribe(**scope) as sub:
        for number in range(80):
            if number == 40:
                for _ in range(8):
                    client.append("c/1", small(5))
            event = next(sub)
            while event.stream != "c/1":
                event = next(sub)
            assert event.version == number
            assert sub.position == (event.version if "stream" in scope else event.position) + 1
    for stored in (0, 41, 79):
        with client.subscribe(stream="c/1", start=stored) as sub:
            assert next(sub).version == stored


def test_names_that_begin_alike_are_not_mixed_up_and_the_longest_are_heard_at_once(
    start_broker: Callable[..., BrokerProcess], follow: Follow
) -> None:
    """§10: exact topics, live; heartbeats every 60 s. A name's 255 bytes may be of 4-byte characters."""
    longest, wide = "l" * 253 + "/1", "\U0001f300" * 63 + "/xy"
    streams = ["a", "ab", "a/b", "a/b/c", "ab/c", "a/", "/a", "ä", "ä/ö", longest, wide, "A", "C", "H", "S", "Ca"]
    categories = ["a", "ab", "ä", "l" * 253, "\U0001f300" * 63]
    broker = start_broker(*SLOW_BEAT)
    with Client(broker.endpoint) as client:
        by_stream = {name: follow(client, stream=name, start="end") for name in streams}
        by_category = {name: follow(client, category=name, start="end") for name in categories}
        for _ in range(2):
            for name in streams:
                client.append(name, Event("t", name.encode()))
        for name, follower in by_stream.items():
            assert follower.wait(2, PROMPT), name
        for name, follower in by_category.items():
            wanted = [stream for stream in streams if stream.startswith(name + "/")]
            assert follower.wait(2 * len(wanted), PROMPT), name
        time.sleep(0.1)
        for name, follower in by_stream.items():
            assert [event.stream for event in follower.events] == [name] * 2
        for name, follower in by_category.items():
            assert [event.stream for event in follower.events] == [s for s in streams if s.startswith(name + "/")] * 2


# Filters on types


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_types_are_exact_in_history_and_live_and_the_position_moves_over_what_is_filtered(
    client: Client, follow: Follow, scope: dict[str, Any]
) -> None:
    """§10: `position` moves over filtered events too, within a batch, a page and live."""

    def write() -> None:
        client.append("c/1", [Event("wanted"), Event("other"), Event("wanted"), Event("other")])
        client.append("c/1", small(30, "other"))
        client.append("c/1", [Event("second"), Event("wanted2")])
        client.append("c/1", small(30, "other"))

    write()
    follower = follow(client, types=["wanted", "second"], **scope)
    none = follow(client, types="absent", **scope)
    assert follower.wait(3)
    assert until(lambda: follower.subscription.position == none.subscription.position == 66)
    write()
    assert follower.wait(6)
    assert follower.positions == [0, 2, 34, 66, 68, 100]
    assert until(lambda: follower.subscription.position == none.subscription.position == 132, PATIENCE_S)
    assert none.items == []


def test_a_filter_that_leaves_nearly_all_out_goes_through_a_long_history(client: Client, follow: Follow) -> None:
    """§9: thousands of batches of which the page holds none."""
    fill(client, "c/1", 9_000, kind="noise")
    wanted = client.append("c/1", Event("wanted")).first_position
    fill(client, "c/1", 3_000, kind="noise")
    for scope in SCOPES:
        follower = follow(client, types=["wanted"], markers=True, **scope)
        assert until(lambda follower=follower: follower.caught_up)
        assert follower.items[0].position == wanted
        assert follower.items[1] == CaughtUp(12_001)


# Markers


@pytest.mark.parametrize("scope", SCOPES, ids=SCOPE_NAMES)
def test_checkpoints_come_after_n_live_events_and_never_in_history(
    client: Client, follow: Follow, scope: dict[str, Any]
) -> None:
    """T-35: N = 10: behind every tenth live event, in the subscription's unit; 250 events of history bring none."""
    client.append("noise/1", small(7))
    client.append("c/1", small(250))
    follower = follow(client, markers=True, checkpoint_events=10, checkpoint_idle=3600.0, **scope)
    assert until(lambda: follower.caught_up)
    for _ in range(5):
        client.append("c/1", small(7))
    history = 257 if not scope else 250
    unit = 0 if "stream" in scope else 7
    assert follower.wait(history + 35)
    assert until(lambda: len(follower.markers) == 4)
    at = [number for number, item in enumerate(follower.items) if isinstance(item, Checkpoint)]
    assert at == [history + 1 + 10 + 11 * number for number in range(3)]
    assert [follower.items[number].position for number in at] == [250 + unit + 10 * (number + 1) for number in range(3)]
    assert [number for number, item in enumerate(follower.items) if isinstance(item, CaughtUp)] == [history]
    assert follower.items[history] == CaughtUp(250 + unit)


def test_checkpoints_come_while_idle_and_tell_a_position_that_moved_over_foreign_events(
    client: Client, follow: Follow
) -> None:
    """T-35: T = 0.3 idle seconds; a category's carries positions, a stream's its version."""
    client.append("c/1", small(5))
    category = follow(client, category="c", markers=True, checkpoint_idle=0.3)
    stream = follow(client, stream="c/1", markers=True, checkpoint_idle=0.3)
    for follower in (category, stream):
        assert until(lambda follower=follower: follower.items[-1:] == [Checkpoint(5)], PATIENCE_S)
        assert follower.items.count(CaughtUp(5)) == 1
    client.append("d/1", small(5))
    assert until(lambda: category.items[-1:] == [Checkpoint(10)], PATIENCE_S)
    client.append("c/1", small(1))
    assert until(lambda: category.items[-1:] == [Checkpoint(11)], PATIENCE_S)
    assert until(lambda: stream.items[-1:] == [Checkpoint(6)], PATIENCE_S)
    assert {item.position for item in stream.markers} == {5, 6}
    begun, count = time.monotonic(), len(stream.items)
    assert until(lambda: len(stream.items) >= count + 3, PATIENCE_S)
    # Three idle times but for the one that was running, and another that the thread may have slept through.
    assert time.monotonic() - begun > 0.25


def test_idle_checkpoints_keep_nothing_from_a_consumer_that_is_slower_than_their_time(
    client: Client, follow: Follow
) -> None:
    """T-35: the consumer needs 50 ms for each item, an idle checkpoint is due after 20 ms: events still come."""
    follower = follow(client, lambda: time.sleep(0.05), stream="c/1", markers=True, checkpoint_idle=0.02)
    assert until(lambda: follower.caught_up)
    client.append("c/1", small(10))
    assert follower.wait(10), follower.items[-5:]
    assert follower.versions == list(range(10))
    client.append("c/1", small(5))
    assert follower.wait(15)


def test_markers_are_off_unless_asked_for(client: Client, follow: Follow) -> None:
    """T-35."""
    client.append("c/1", small(150))
    follower = follow(client, checkpoint_idle=0.05, checkpoint_events=10)
    assert follower.wait(150)
    client.append("c/1", small(150))
    assert follower.wait(300)
    time.sleep(0.2)  # several idle times
    assert len(follower.items) == 300


# Several streams and categories in one append


def test_an_append_to_several_categories_reaches_each_with_its_own_events(client: Client, follow: Follow) -> None:
    """§10: category topics with multi-stream appends, interleaved, live, in history and from each start."""
    names = ["a/1", "b/1", "a/2", "plain", "b/2", "c/1"]
    live = {name: follow(client, category=name) for name in "abc"}
    everything = follow(client)
    for round_ in range(40):
        chosen = names[round_ % 3 :] + names[: round_ % 3]
        client.append_many([Write(name, small(1 + (round_ + place) % 3), ANY) for place, name in enumerate(chosen)])
        if round_ % 5 == 0:
            client.append("noise/1", Event("t"))
    for name, follower in live.items():
        expected = list(client.read_category(name))
        assert follower.wait(len(expected))
        assert follower.events == expected
        starts = range(0, client.head(), 29)
        for start in starts:
            late = follow(client, category=name, start=start)
            assert late.wait(sum(event.position >= start for event in expected))
            assert late.events == [event for event in expected if event.position >= start]
            late.end()
    assert everything.wait(client.head())
    assert everything.positions == list(range(client.head()))
