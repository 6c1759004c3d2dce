"""One pass in one process, over a transport without sockets."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import gevent
import gevent.event
import msgspec
import pytest

from loadtest.client import level as level_module
from loadtest.client import recorder
from loadtest.client.exchange import Endpoint
from loadtest.client.level import Level
from loadtest.client.pass_options import PassOptions
from loadtest.client.record_builder import cut
from loadtest.client.recorder import SLICE_TIMES, encoded, give_way
from loadtest.client.thinking import prompt_opens
from loadtest.errors import RecordError
from loadtest.records.pass_facts import Failure
from loadtest.records.read import read_level
from loadtest.workload.contract import Contract
from loadtest.workload.script import Script
from loadtest.workload.workload import load

ANSWER = [
    b'data: {"choices":[{"delta":{"content":"why</think>"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"42"},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


class Canned:
    """Gives the same answer to every exchange; waits for `gate`, when there is one, after its first piece."""

    def __init__(self, pieces=ANSWER, *, gate=None, fail=None):
        self.pieces, self.gate, self.fail, self.opened, self.closed = pieces, gate, fail, 0, False

    def open(self, connections):
        self.opened = connections
        return 0.5

    def perform(self, exchange):
        exchange.began = exchange.sent = time.monotonic()
        exchange.status, exchange.content_type, exchange.resends = 200, "text/event-stream", 1
        if self.fail:
            exchange.ended = time.monotonic()
            exchange.fail(*self.fail)
            return
        for i, piece in enumerate(self.pieces):
            if i and self.gate is not None:
                try:
                    self.gate.wait()
                except gevent.GreenletExit:
                    exchange.outcome, exchange.ended = "cut_off", time.monotonic()
                    raise
            exchange.reads.append(time.monotonic())
            exchange.pieces.append(piece)
        exchange.ended = time.monotonic()

    def close(self):
        self.closed = True


def endpoint(settings, transport):
    script = Script(load("math:n=5"), settings.contract, model=settings.model, engine=settings.engine, seed=settings.seed)
    return Endpoint(transport=transport, script=script, opened=prompt_opens(settings.contract, settings.model))


@pytest.fixture
def make(tmp_path):
    levels = []

    def level(transport=None, *, requests=4, slots=(0, 1), transports=(), **settings):
        chosen = PassOptions(
            out=str(tmp_path), run_id="r", cell="other_qwq_tp1", engine="other", model="qwq-32b", tp=1, url="http://x",
            concurrency=2, repeat=1, requests=requests, warmup_requests=1, seed=3,
            clock_speed=settings.pop("clock_speed", 1.0), workload="math:n=5", workload_identity="",
            contract=Contract(**settings),
        )  # fmt: skip
        failures, kept = [], []
        servers = [replace(one, replica=f"x{n}:1") for n, one in enumerate(endpoint(chosen, own) for own in transports)]
        servers = servers or [endpoint(chosen, transport or Canned())]
        made = Level(chosen, slots, *servers, kept=kept.append, failed=failures.append)
        made.failures, made.kept = failures, kept
        levels.append(made)
        made.open()
        return made

    yield level
    for made in levels:
        if not made.closed:
            made.close()


def send(level, item, user=0):
    """Send one and wait for the clerk."""
    n = len(level.kept) + len(level.failures)
    level.send(item, user, level.clock.now_s())
    while len(level.kept) + len(level.failures) == n:
        gevent.sleep(0.001)
    return level.kept[-1] if level.kept else None


def on_disk(level):
    return read_level(level.options.folder).requests


def test_a_record_says_what_happened(make):
    level = make()
    item = level.next_item()
    record = send(level, item, 1)
    assert (record.outcome, record.answer, record.answer_correct, record.first_answer_chunk) == ("ok", "42", False, 1)
    assert record.output_end is None, "the answer holds it all"
    assert (record.phase, record.user, record.seq, record.prompt_id) == ("measure", 1, 0, item.prepared.prompt.id)
    assert record.request_sha256 == item.prepared.sha256
    assert 0 <= record.scheduled_s <= record.sent_s <= record.chunk_s[0] <= record.chunk_s[-1] <= record.ended_s
    assert (record.thinking_field, record.think_closed, record.token_count_source) == ("inline", True, "chunks")
    assert record.resends == 1
    assert on_disk(level) == (record,)


def test_answers_in_a_free_form_are_not_judged(make):
    level = make(output_format="free")
    send(level, level.next_item())
    level.close()
    (record,) = on_disk(level)
    assert (record.answer, record.answer_correct) == ("42", None)


def test_the_end_of_an_output_without_an_answer_is_kept(make):
    looped = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"Wait. " * 900)
    ended = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    level = make(Canned([looped, ended, b"data: [DONE]\n\n"]))
    send(level, level.next_item())
    level.close()
    (record,) = on_disk(level)
    assert (record.outcome, record.answer, record.output_end) == ("truncated", None, ("Wait. " * 900)[-4000:])


def test_the_end_of_an_answer_that_was_cut_is_kept(make):
    """3 bytes a character: fewer characters than the limit has bytes, and yet too long for it."""
    words = '"</think>' + "答" * 1500 + '"'
    told = b'data: {"choices":[{"delta":{"content":%s},"finish_reason":"stop"}]}\n\n' % words.encode()
    level = make(Canned([told, b"data: [DONE]\n\n"]))
    send(level, level.next_item())
    level.close()
    (record,) = on_disk(level)
    assert (record.outcome, record.answer) == ("ok", "答" * 1365)
    assert record.output_end.endswith("答" * 1500)


def test_the_level_ends_with_its_last_request(make):
    level = make(requests=3)
    assert level.quota == 3
    while (item := level.next_item()) is not None:
        assert not level.finished
        send(level, item)
    assert level.finished
    assert [r.seq for r in on_disk(level)] == [0, 1, 2]


def test_warm_ups_do_not_count(make):
    level = make(requests=1)
    assert send(level, level.script.warmup(0)).phase == "warmup"
    assert not level.finished


def test_a_killed_request_is_recorded_as_cut_off(make):
    level = make(Canned(gate=gevent.event.Event()))
    job = gevent.spawn(level.send, level.next_item(), 0, 0.0)
    gevent.sleep(0.01)
    assert level.in_flight == 1
    job.kill()
    level.close()
    (record,) = on_disk(level)
    assert (record.outcome, record.error, len(record.chunk_s)) == ("cut_off", None, 1)
    assert (level.in_flight, level.started, level.recorder.written) == (0, 1, 1)


def test_a_record_that_cannot_be_written_ends_the_measurement(make, monkeypatch):
    level = make()

    def full(_):
        raise RecordError("disk full")

    monkeypatch.setattr(level.recorder._requests, "write", full)
    send(level, level.next_item())
    assert level.failures == [Failure(kind="records", message="disk full")]
    assert (level.summary().failure, level.summary().failure_kind) == ("disk full", "records")


def test_a_server_that_has_gone_ends_the_measurement(make, monkeypatch):
    level = make(Canned(fail=("connection_error", "refused", "refused")), requests=None)
    send(level, level.next_item())
    assert not level.failures
    monkeypatch.setattr(level_module, "GIVE_UP_AFTER_S", -1.0)
    send(level, level.next_item())
    assert "is the server still there?" in level.failures[0].message


def test_no_request_is_sent_while_too_many_replies_wait_to_be_decoded(make, monkeypatch):
    monkeypatch.setattr(recorder, "BACKLOG_REPLIES", 2)
    gate, plain = gevent.event.Event(), recorder.encoded
    monkeypatch.setattr(recorder, "encoded", lambda *arguments: (gate.wait(), plain(*arguments))[1])
    level = make()
    users = [gevent.spawn(level.send, level.next_item(), 0, 0.0) for _ in range(3)]
    gevent.joinall(users, raise_error=True)  # one with the clerk, two in the queue
    users.append(gevent.spawn(level.send, level.next_item(), 0, 0.0))
    gevent.idle()
    assert (level.started, level.in_flight) == (3, 0)
    gate.set()
    gevent.joinall(users, raise_error=True)
    while len(level.kept) < 4:
        gevent.sleep(0.001)
    assert [record.outcome for record in level.kept] == ["ok"] * 4


def test_users_are_numbered_by_their_slots_and_beyond(make):
    level = make(slots=(1,))
    assert [level.join() for _ in range(3)] == [1, 3, 5]


def test_simulated_seconds(make):
    level = make(clock_speed=50.0)
    record = send(level, level.next_item())
    assert record.clock_speed == 50.0


def test_closing_leaves_a_summary_and_a_health_sample(make):
    level = make()
    send(level, level.next_item())
    level.close()
    folder: Path = level.options.folder
    assert len(list(folder.glob("level-*.json"))) == 1
    assert len(read_level(folder).health) == 1
    assert (level.servers[0].transport.opened, level.servers[0].transport.closed, level.connected_wall_s) == (2, True, 0.5)


def test_items_take_turns_at_servers_and_a_task_stays_with_one(make, tmp_path):
    transports = [Canned(), Canned(fail=("connection_error", "refused", "connection refused"))]
    level = make(requests=6, slots=(0, 1, 2), transports=transports)
    assert [one.opened for one in transports] == [2, 2]
    for index in range(4):
        level.send(level.script.measured(index), 0, 0.0)
    task = level.script.measured(5)
    for turn in (0, 1):
        level.send(level.script.turn(task, task.prepared.prompt.messages, turn, 2, 2), 0, 0.0)
    level.close()
    sent = [(record.replica, record.outcome) for record in level.kept]
    assert sent == [("x0:1", "ok"), ("x1:1", "connection_error")] * 2 + [("x1:1", "connection_error")] * 2
    assert level.failures == []


def test_a_long_record_is_encoded_in_slices_and_reads_back_the_same(make):
    level = make(Canned([ANSWER[0], *[ANSWER[1]] * (2 * SLICE_TIMES), ANSWER[2]]))
    record = send(level, level.next_item())
    assert len(record.chunk_s) == 2 * SLICE_TIMES + 1
    assert on_disk(level) == (record,)
    pauses = []
    assert bytes(encoded(record, lambda: pauses.append(1))) == msgspec.json.encode(record)
    assert len(pauses) == 3


def test_every_request_is_named_on_the_wire_and_no_two_alike(make):
    level = make(requests=2)
    sent = [level.send(item, 0, 0.0).request_id for item in (level.next_item(), level.next_item(), level.script.warmup(0))]
    where = "r.other_qwq_tp1.c02-r1"
    assert sent == [f"{where}.measure-0", f"{where}.measure-1", f"{where}.warmup-0"]


def test_sockets_are_read_between_two_slices():
    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    turns = []
    watcher = gevent.get_hub().loop.io(ours.fileno(), 1)
    for slices in range(1, 6):
        watcher.start(lambda: (turns.append(1), watcher.stop()))
        give_way()
        assert len(turns) == slices
    watcher.close()
    ours.close()
    theirs.close()


def test_a_socket_that_is_always_ready_does_not_stop_the_clerk():
    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    turns = []
    watcher = gevent.get_hub().loop.io(ours.fileno(), 1)
    watcher.start(turns.append, 1)
    give_way()
    watcher.stop()
    watcher.close()
    ours.close()
    theirs.close()
    assert turns


@pytest.mark.parametrize(("limit", "text"), [(100, "añb"), (4, "añb"), (3, "añ"), (2, "a"), (0, "")])
def test_cut(limit, text):
    assert cut("añb", limit) == text


def test_a_tokenizer_counts_where_the_server_does_not(tmp_path):
    settings = PassOptions(
        out=str(tmp_path), run_id="r", cell="c", engine="other", model="m", tp=1, url="http://x", concurrency=1, repeat=1,
        requests=1, warmup_requests=0, seed=0, clock_speed=1.0, workload="math:n=5", workload_identity="",
        contract=Contract(),
    )  # fmt: skip
    kept = []
    level = Level(settings, (0,), endpoint(settings, Canned()), kept=kept.append, failed=kept.append, count_tokens=len)
    level.open()
    level.send(level.next_item(), 0, 0.0)
    level.close()
    assert (kept[0].completion_tokens, kept[0].token_count_source) == (len("why</think>42"), "tokenizer")


def test_a_clerk_that_dies_ends_the_measurement(make, monkeypatch):
    level = make()
    monkeypatch.setattr(level.recorder, "_record", lambda *_: 1 / 0)
    level.send(level.next_item(), 0, 0.0)
    while not level.failures:
        gevent.sleep(0.001)
    assert "ZeroDivisionError" in level.failures[0].message
