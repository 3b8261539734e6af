"""Reports of tasks reach the driver that they are for, over one topic of the connection."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from distributed import get_worker

from volflow.engine.cluster import connect
from volflow.engine.observing.reports import heard, is_connected, reported


def log(topic, *drivers):
    for driver in drivers:
        get_worker().log_event(topic, {"driver": driver, "from": driver})


def wait_for(found, count):
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_each_driver_hears_its_own(client):
    with connect(client) as client:
        assert is_connected(client)
        one, two = [], []
        with heard(client, "one", one.append) as topic, heard(client, "two", two.append) as same:
            assert same == topic
            done = client.submit(log, topic, "one", "two", "nobody", "two")
            wait_for(two, 2)
            done.result()
        assert [report["from"] for report in one] == ["one"]
        assert [report["from"] for report in two] == ["two", "two"]


def test_what_comes_late_is_nobodys(client):
    with connect(client) as client:
        ended, goes_on = [], []
        with heard(client, "ended", ended.append):
            pass
        with heard(client, "goes on", goes_on.append) as topic:
            done = client.submit(log, topic, "ended", "goes on")
            wait_for(goes_on, 1)
            done.result()
        assert ended == []
        assert len(goes_on) == 1


def test_outside_of_a_connection_nobody_hears():
    with connect("threads") as client:
        assert is_connected(client)
    assert not is_connected(client)
    with pytest.raises(KeyError), heard(client, "one", print):
        pass


def test_a_client_that_lost_its_scheduler_subscribes_again():
    subscribed = []
    client = SimpleNamespace(
        id="client", status="running", scheduler_comm=object(), unsubscribe_topic=lambda _: None,
        subscribe_topic=lambda name, _: subscribed.append(name),
    )  # fmt: skip
    with reported(client):
        for _ in range(2):
            with heard(client, "one", print) as topic:
                assert subscribed == [topic]
        client.scheduler_comm = object()
        with heard(client, "two", print):
            assert subscribed == [topic, topic]
