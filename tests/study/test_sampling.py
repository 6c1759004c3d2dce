"""What is read of a server while a pass runs."""

import threading

from loadtest.servers import prometheus
from loadtest.study import sampling
from loadtest.study.locust_pass import Target


def test_nothing_is_asked_before_the_first_reading(monkeypatch, tmp_path):
    told = []
    may_read = threading.Event()

    def scrape_forever(urls, folder, clock, stop, begun, keyed):
        may_read.wait(10)
        told.append("first reading")
        begun.set()
        stop.wait(10)
        told.append("last reading")

    monkeypatch.setattr(prometheus, "scrape_forever", scrape_forever)
    threading.Timer(0.1, may_read.set).start()
    with sampling.sampling(Target("http://127.0.0.1:1", "m"), tmp_path, gpus=False) as unwritable:
        told.append("pass")
        assert unwritable() is None
    assert told == ["first reading", "pass", "last reading"]


def test_a_reading_that_fails_keeps_nobody_waiting(monkeypatch, tmp_path):
    monkeypatch.setattr(sampling, "_FIRST_READING_S", 600.0)
    monkeypatch.setattr(prometheus, "scrape_forever", lambda *_, **__: None)
    with sampling.sampling(Target("http://127.0.0.1:1", "m"), tmp_path, gpus=False):
        pass
