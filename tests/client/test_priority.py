"""Precedence for the process that reads: the best that is permitted, given up where it would do harm."""

import os

import pytest

from loadtest.client import priority


class System:
    """A system that permits some of it."""

    def __init__(self, *, realtime, nice):
        self.realtime, self.lower = realtime, nice
        self.policy, self.nice = os.SCHED_OTHER, 0

    def set_policy(self, _, policy, parameter):
        if policy & os.SCHED_RR and not self.realtime:
            raise PermissionError
        self.policy = policy

    def set_nice(self, _, __, nice):
        if nice < self.nice and not self.lower:
            raise PermissionError
        self.nice = nice


@pytest.fixture
def system(request, monkeypatch):
    made = System(**request.param)
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: made.policy)
    monkeypatch.setattr(os, "sched_getparam", lambda _: os.sched_param(0))
    monkeypatch.setattr(os, "sched_setscheduler", made.set_policy)
    monkeypatch.setattr(os, "getpriority", lambda *_: made.nice)
    monkeypatch.setattr(os, "setpriority", made.set_nice)
    return made


@pytest.mark.parametrize(
    ("system", "held"),
    [
        ({"realtime": True, "nice": True}, "realtime"),
        ({"realtime": False, "nice": True}, "nice"),
        ({"realtime": False, "nice": False}, "normal"),
    ],
    indirect=["system"],
)
def test_the_best_that_is_permitted_is_taken_and_given_back(system, held):
    precedence = priority.Precedence()
    precedence.take()
    assert precedence.held == held
    precedence.hold_to(0.5)
    assert precedence.held == held
    precedence.drop()
    assert (precedence.held, system.policy, system.nice) == ("normal", os.SCHED_OTHER, 0)


@pytest.mark.parametrize("system", [{"realtime": True, "nice": True}], indirect=True)
def test_more_than_half_of_a_core_gives_it_up(system):
    precedence = priority.Precedence()
    precedence.take()
    precedence.hold_to(0.51)
    assert precedence.held == "normal"


@pytest.mark.parametrize("system", [{"realtime": True, "nice": True}], indirect=True)
def test_what_the_user_gave_stays(system):
    system.policy = os.SCHED_FIFO
    precedence = priority.Precedence()
    precedence.take()
    precedence.drop()
    assert (precedence.held, system.policy) == ("realtime", os.SCHED_FIFO)


def test_what_is_started_meanwhile_does_not_inherit_real_time():
    precedence = priority.Precedence()
    precedence.take()
    try:
        child = os.fork()
        if child == 0:
            os._exit(os.sched_getscheduler(0) != os.SCHED_OTHER)
        _, status = os.waitpid(child, 0)
    finally:
        precedence.drop()
    assert os.waitstatus_to_exitcode(status) == 0
