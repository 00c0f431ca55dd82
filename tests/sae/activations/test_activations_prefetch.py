"""Reading ahead: the same batches, errors in their place, no thread that stays, and a wait that is hidden."""

import gc
import subprocess
import sys
import threading
import time

import pytest
import torch

from sae.activations.prefetch import prefetched
from sae.errors import ConfigError


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sae-prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert readers() == []
    yield
    gc.collect()
    assert readers() == []


class Source:
    """Numbers, and what was asked of them."""

    def __init__(self, n, *, wait=0.0, fails_at=None):
        self.n, self.wait, self.fails_at, self.asked, self.closed, self.threads = n, wait, fails_at, 0, False, set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait)
        if self.asked == self.fails_at:
            raise OSError("the disk is gone")
        if self.asked == self.n:
            raise StopIteration
        self.asked += 1
        return self.asked - 1

    def close(self):
        self.closed = True


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("n", [0, 1, 3, 40])
def test_values_and_their_order_do_not_change(n, depth):
    assert list(prefetched(iter(range(n)), depth)) == list(range(n))
    assert list(prefetched((torch.full((3,), i) for i in range(n)), depth)) == [pytest.approx([i] * 3) for i in range(n)]


def test_depth_zero_is_the_iterator_itself():
    source = Source(3)
    assert prefetched(source, 0) is source


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_at_most_depth_batches_are_read_in_advance_and_none_before_the_first_is_asked_for(depth):
    source = Source(1000)
    ahead = prefetched(source, depth)
    time.sleep(0.02)
    assert source.asked == 0
    for taken in range(1, 20):
        next(ahead)
        deadline = time.monotonic() + 5
        while source.asked < taken + depth and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.002)
        assert source.asked == taken + depth
    ahead.close()
    assert source.threads == {"sae-prefetch_0"}


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("fails_at", [0, 1, 6])
def test_an_error_arrives_after_the_batches_that_came_before_it(fails_at, depth):
    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        for number in prefetched(Source(10, fails_at=fails_at), depth):
            got.append(number)
    assert got == list(range(fails_at))


def test_closing_ends_the_thread_and_closes_the_source():
    source = Source(100)
    ahead = prefetched(source, 2)
    assert next(ahead) == 0
    assert len(readers()) == 1
    ahead.close()
    assert readers() == []
    assert source.closed
    asked = source.asked
    time.sleep(0.02)
    assert source.asked == asked <= 3


def test_a_generator_that_is_read_ahead_runs_its_finally_when_the_caller_stops():
    ended = []

    def numbers():
        try:
            yield from range(100)
        finally:
            ended.append(True)

    for number in prefetched(numbers(), 2):
        if number == 5:
            break
    gc.collect()
    assert ended == [True]


def test_closing_waits_for_one_read_at_most():
    ahead = prefetched(Source(100, wait=0.05), 50)
    next(ahead)
    started = time.monotonic()
    ahead.close()
    assert time.monotonic() - started < 0.5  # not the 50 reads that were asked for


def test_an_iterator_that_is_dropped_ends_its_thread():
    ahead = prefetched(Source(100), 2)
    next(ahead)
    assert len(readers()) == 1
    del ahead
    gc.collect()
    assert readers() == []


def test_a_consumer_that_fails_leaves_no_thread():
    def consume():
        for number in prefetched(Source(100), 2):
            if number == 3:
                raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        consume()


def test_waiting_is_hidden_behind_work():
    def seconds(depth, n=12, wait=0.03):
        started = time.monotonic()
        for _ in prefetched(Source(n, wait=wait), depth):
            time.sleep(wait)
        return time.monotonic() - started

    alone, ahead = seconds(0), seconds(2)
    assert alone > 12 * 0.06
    assert ahead < 0.7 * alone  # 13 / 24 when nothing else runs


def test_the_reader_uses_one_torch_thread_and_leaves_the_callers_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        numbers = prefetched((torch.get_num_threads() for _ in range(5)), 2)
        assert next(numbers) == 1
        assert torch.get_num_threads() == 2
        other = []
        thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert other == [2]  # a thread that starts later
        assert list(numbers) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_two_readers_can_run_side_by_side_and_one_inside_another():
    pairs = list(zip(prefetched(iter(range(50)), 2), prefetched(prefetched(iter(range(50)), 3), 2), strict=True))
    assert pairs == [(i, i) for i in range(50)]


@pytest.mark.parametrize(
    "ending",
    ["pass", "raise SystemExit(3)", "raise ValueError('consumer')", "import os; os.kill(os.getpid(), signal.SIGINT)"],
)
def test_a_program_ends_at_once_whatever_is_being_read(ending):
    program = f"""
import signal, time
from sae.activations.prefetch import prefetched
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in a shell's background inherits that it is ignored
def slow():
    while True:
        time.sleep(0.05)
        yield 1
kept = prefetched(slow(), 3)
next(kept)
{ending}
"""
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started < 30
    assert "Fatal" not in result.stderr and "deadlock" not in result.stderr
    wanted = {"pass": [0], "raise SystemExit(3)": [3], "raise ValueError('consumer')": [1]}.get(ending, [130, -2])
    assert result.returncode in wanted, result.stderr


def test_a_negative_depth_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"depth must be at least 0, got -1 \(prefetched\)"):
        prefetched(iter(()), -1)
