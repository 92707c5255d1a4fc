"""How often a site looks for messages."""

import pytest

from ffalora.federated.flower import supernode


@pytest.fixture
def clock(monkeypatch):
    """A clock of its own that stands still but for sleeping; what was slept is in ``slept``."""

    class Time:
        now, slept = 100.0, []

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.slept.append(seconds)
            self.now += seconds

    time = Time()
    time.slept = []
    monkeypatch.setattr(supernode, "time", time)
    return supernode.Clock(), time


def test_a_site_looks_often_after_a_message_and_as_often_as_flower_where_none_comes(clock):
    node, time = clock
    for _ in range(60):
        node.sleep(3)
    assert time.slept[0] == supernode.SHORTEST and time.slept[-1] == 3
    assert time.slept == sorted(time.slept) and len([pause for pause in time.slept if pause < 3]) < 30
    node.sleep(0.5)
    node.sleep(3)
    assert time.slept[-1] <= 0.5 and time.slept[-2] <= 0.5, "a message was at work"


def test_no_look_comes_later_than_a_fifth_of_the_wait(clock):
    node, time = clock
    for _ in range(40):
        waited = time.now - 100.0
        node.sleep(3)
        assert time.slept[-1] <= max(supernode.SHORTEST, waited / 5)


def test_whatever_else_flower_asks_of_time_is_answered(clock):
    node, _ = clock
    assert node.monotonic() == 100.0
