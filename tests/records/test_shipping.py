"""Batches of record files that are lost, late, out of order, sent twice, or not ours."""

import json
import random
import zlib

import msgspec
import pytest

from loadtest.errors import RecordError
from loadtest.records.pass_facts import LevelSummary
from loadtest.records.read import count_lines
from loadtest.records.shipping import LARGEST_BATCH_BYTES, Batch, Inbox, Kept, Outbox, RefusedError, WorkerEnd, is_masters
from loadtest.records.write import JsonlWriter, write_file

TOKEN = "0123"
REQUESTS, HEALTH = "requests-a-1.jsonl", "client_health-a-1.jsonl"


@pytest.fixture
def homes(tmp_path):
    return tmp_path / "worker", tmp_path / "master"


class Worker:
    """A worker that has written some records, and may write more."""

    def __init__(self, folder):
        self.requests, self.health = JsonlWriter(folder, "requests-a-1"), JsonlWriter(folder, "client_health-a-1")
        self.outbox = Outbox(folder, (REQUESTS, HEALTH), TOKEN)
        self.written = 0

    def write(self, n=1):
        for _ in range(n):
            self.written += 1
            self.requests.write({"seq": self.written, "chunk_s": [random.Random(self.written).random() for _ in range(50)]})
            self.health.write({"t_s": self.written})

    def close(self):
        self.requests.close()
        self.health.close()
        return WorkerEnd(summary(REQUESTS, self.written), self.outbox.ends())


def summary(file, written):
    return LevelSummary(
        worker="a-1", host="a", file=file, users=1, connections_opened=1, connections_wall_s=0.0, started=written,
        written=written, failure=None,
    )  # fmt: skip


def ship(worker, inbox, name="a", most_bytes=500):
    while (batch := worker.outbox.next_batch(most_bytes)) is not None:
        assert worker.outbox.acknowledge(inbox.take(name, batch))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("[rc]*.jsonl")}


def test_what_arrives_is_what_was_written_with_the_writers_digests(homes):
    here, there = homes
    worker, inbox = Worker(here), Inbox(there, TOKEN)
    worker.write(20)
    ship(worker, inbox)
    worker.write(5)
    end = worker.close()
    inbox.end("a", end)
    assert inbox.left_bytes("a") == worker.outbox.left_bytes > 0
    ship(worker, inbox)
    assert inbox.left_bytes("a") == worker.outbox.left_bytes == 0
    assert inbox.close() == []
    assert contents(there) == contents(here)
    (digests,) = there.glob("digests-*.jsonl")
    (own,) = here.glob("digests-*.jsonl")
    assert sorted(digests.read_text().splitlines()) == sorted(own.read_text().splitlines())
    assert json.loads((there / "level-a-1.json").read_text())["written"] == 25 == count_lines(there / REQUESTS)


@pytest.mark.fault("processes", "Batches of records lost, late, or sent twice: no matter")
@pytest.mark.parametrize("seed", range(5))
def test_batches_and_answers_may_be_lost_late_and_sent_twice(homes, seed):
    here, there = homes
    worker, inbox, chance = Worker(here), Inbox(there, TOKEN), random.Random(seed)
    batches, answers = [], []
    while worker.written < 60 or worker.outbox.left_bytes:
        if worker.written < 60:
            worker.write(chance.randrange(4))
        if (batch := worker.outbox.next_batch(chance.choice((64, 500, LARGEST_BATCH_BYTES)))) is not None:
            batches.append(batch)
        if batches and chance.random() < 0.7:
            answers.append(inbox.take("a", batches[chance.randrange(len(batches))]))
        if answers and chance.random() < 0.7:
            worker.outbox.acknowledge(answers[chance.randrange(len(answers))])
    inbox.end("a", worker.close())
    assert inbox.close() == []
    assert contents(there) == contents(here)


def test_what_did_not_come_is_named_and_the_digest_is_the_writers(homes):
    here, there = homes
    worker, inbox = Worker(here), Inbox(there, TOKEN)
    worker.write(20)
    inbox.take("a", worker.outbox.next_batch(2000))
    inbox.end("a", worker.close())
    lost = inbox.close()
    assert len(lost) == 2
    assert lost[0].startswith(f"{REQUESTS}: expected 20 lines ")
    (digests,) = there.glob("digests-*.jsonl")
    assert {json.loads(line)["lines"] for line in digests.read_text().splitlines()} == {20}


def test_of_a_worker_that_died_stays_what_came(homes):
    here, there = homes
    worker, inbox = Worker(here), Inbox(there, TOKEN)
    worker.write(20)
    inbox.take("a", worker.outbox.next_batch(2000))
    assert inbox.close() == []  # it said nothing; the master tells that it was lost
    assert contents(here)[REQUESTS].startswith(contents(there)[REQUESTS])
    assert inbox.summaries() == {}


def test_two_hosts_with_one_name_get_a_file_each(homes, tmp_path):
    inbox = Inbox(homes[1], TOKEN)
    for name in "ab":
        worker = Worker(tmp_path / name)
        worker.write(3)
        ship(worker, inbox, name)
        inbox.end(name, worker.close())
    assert inbox.close() == []
    assert {one.file for one in inbox.summaries().values()} == {REQUESTS, "requests-a-1-2.jsonl"}
    assert {path.name for path in homes[1].glob("level-*")} == {"level-a-1.json", "level-a-1-2.json"}


def batch(content=b"{}\n", **changed):
    honest = Batch(TOKEN, REQUESTS, 0, len(content), zlib.compress(content))
    return msgspec.structs.replace(honest, **changed)


BOMB = zlib.compress(bytes(64 * 2**20))

REFUSED = {
    "another pass": batch(token="x"),
    "a path": batch(file="../../requests-a-1.jsonl"),
    "an absolute path": batch(file="/tmp/requests-a-1.jsonl"),
    "a file of ours": batch(file="manifest.json"),
    "a NUL": batch(file="requests-a\0.jsonl"),
    "a long name": batch(file=f"requests-{'a' * 300}.jsonl"),
    "no zlib": batch(packed=b"no"),
    "cut off": batch(packed=zlib.compress(b"{}\n")[:-2]),
    "more than it says": batch(size_bytes=2),
    "less than it says": batch(size_bytes=4),
    "a bomb": batch(packed=BOMB, size_bytes=LARGEST_BATCH_BYTES),
    "a bomb that owns up": batch(packed=BOMB, size_bytes=64 * 2**20),
    "something behind it": batch(packed=zlib.compress(b"{}\n") + b"more"),
    "before the start": batch(offset_bytes=-1),
    "nothing": batch(b""),
}


@pytest.mark.fault("processes", "A batch with a path in its name, a compression bomb, or of another run: refused")
@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED)
def test_what_is_not_ours_is_refused_and_writes_nothing(tmp_path, wrong):
    inbox = Inbox(tmp_path, TOKEN)
    with pytest.raises(RefusedError):
        inbox.take("a", wrong)
    assert list(tmp_path.rglob("*")) == []
    assert inbox.take("a", batch()) == Kept(TOKEN, REQUESTS, 3)


def test_a_gap_and_what_overlaps_are_not_written(tmp_path):
    inbox = Inbox(tmp_path, TOKEN)
    assert inbox.take("a", batch(offset_bytes=9)).size_bytes == 0
    assert inbox.take("a", batch()).size_bytes == 3
    assert inbox.take("a", batch(b"{}\n{}\n")).size_bytes == 3


def test_a_worker_has_so_many_files(tmp_path):
    inbox = Inbox(tmp_path, TOKEN)
    for i in range(4):
        inbox.take("a", batch(file=f"requests-a-{i}.jsonl"))
    with pytest.raises(RefusedError, match="more than 4 files"):
        inbox.take("a", batch(file="requests-a-4.jsonl"))


def test_an_end_with_a_path_in_it_is_refused(tmp_path):
    with pytest.raises(RefusedError):
        Inbox(tmp_path, TOKEN).end("a", WorkerEnd(summary("../requests-a-1.jsonl", 1)))


def test_an_answer_of_another_pass_or_of_less_changes_nothing(homes):
    worker = Worker(homes[0])
    worker.write()
    assert worker.outbox.acknowledge(Kept(TOKEN, REQUESTS, 10))
    assert not worker.outbox.acknowledge(Kept(TOKEN, REQUESTS, 10))
    assert not worker.outbox.acknowledge(Kept("x", REQUESTS, 20))
    assert not worker.outbox.acknowledge(Kept(TOKEN, "requests-b.jsonl", 20))


def test_a_master_whose_disk_refuses_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError):
        Inbox(tmp_path / "file", TOKEN).take("a", batch())


def test_a_shared_folder_is_known_by_its_token(tmp_path):
    assert not is_masters(tmp_path, TOKEN)
    write_file(tmp_path / ".master", b"another")
    assert not is_masters(tmp_path, TOKEN)
    write_file(tmp_path / ".master", TOKEN.encode())
    assert is_masters(tmp_path, TOKEN)
