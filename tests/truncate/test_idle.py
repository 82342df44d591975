"""A truncation that takes nothing from a subscriber, and a directory that holds nothing but a base."""

from __future__ import annotations

import os
import threading

import pytest
from support.process import BrokerProcess, until
from support.simdisk import SimDisk
from tidelog import Client, CorruptLog, Event, TidelogError
from tidelog_broker.store import Store
from truncate.driven import SMALL, Driven


def test_a_live_subscriber_of_an_idle_category_goes_on_over_truncations_at_the_head(small: BrokerProcess) -> None:
    got: list[bytes] = []
    errors: list[TidelogError] = []
    with Client(small.endpoint, timeout=20.0) as client:
        client.append("idle/1", Event("t", b"before"))
        sub = client.subscribe(category="idle", start="end")

        def follow() -> None:
            try:
                for event in sub:
                    got.append(event.payload)
            except TidelogError as error:
                errors.append(error)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        for number in range(8):
            client.append("other/1", [Event("t"), Event("t")])
            head = client.head()
            client.truncate_before(head)
            # Over a heartbeat, behind which it reads.
            assert until(lambda head=head: sub.position >= head or errors, 20.0), number
            assert not errors
        client.append("idle/1", Event("t", b"live"))
        assert until(lambda: got or errors, 20.0)
        sub.stop()
        thread.join(20.0)
        sub.close()
    assert (got, errors) == ([b"live"], [])


def test_a_directory_that_holds_a_base_and_nothing_else_is_no_place_for_a_new_log() -> None:
    driven = Driven(SimDisk())
    driven.fill(9)
    driven.truncate(30)
    assert driven.clear()
    image = {name: data for name, data in driven.sim.image().items() if name.startswith("base-")}
    disk = SimDisk(image)
    with pytest.raises(CorruptLog):
        Store(disk, SMALL, os.urandom)
    assert disk.image() == image
