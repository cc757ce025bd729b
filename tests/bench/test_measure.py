import gc

import numpy as np
import pytest

from dyncp_kernels.bench.engines import Run
from dyncp_kernels.bench.measure import measure


class Recorder(Run):
    def __init__(self, log, name):
        self.log, self.name, self.placed, self.resets = log, name, None, 0

    def reset(self):
        self.resets += 1

    def place_gates(self, frame):
        self.placed = frame

    def __call__(self, frame):
        assert self.placed == frame
        assert not gc.isenabled()
        self.log.append((self.name, frame))

    def mask(self):
        return np.zeros(1, np.float32)


def test_engines_take_turns_and_only_settled_calls_count():
    log = []
    runs = {name: Recorder(log, name) for name in "abc"}
    options = {"cycle": 7, "calls": 4, "settle": 2, "seconds": 0.0, "least_rounds": 3}
    timings = measure(runs, dict.fromkeys(runs, 1), **options)
    assert {name: timing.calls for name, timing in timings.items()} == dict.fromkeys("abc", 3 * 4)
    turns = ["".join(name for name, _ in log[start : start + 6]) for start in range(0, len(log), 6)]
    assert all(turn == turn[0] * 6 for turn in turns)
    rounds = [{turn[0] for turn in turns[start : start + 3]} for start in range(0, len(turns), 3)]
    assert rounds == [set("abc")] * 4  # the warm-up is the fourth
    for name in "abc":
        frames = [frame for who, frame in log if who == name]
        assert frames == [call % 7 for call in range(len(frames))]
        assert runs[name].resets == 1


def test_times_are_per_frame_and_garbage_collection_comes_back():
    runs = {name: Recorder([], name) for name in "ab"}
    assert gc.isenabled()
    timings = measure(runs, {"a": 1, "b": 10**6}, cycle=1, calls=5, settle=0, seconds=0.0)
    assert gc.isenabled()
    assert timings["b"].p50 < timings["a"].p50 <= timings["a"].p99


def test_garbage_collection_comes_back_after_an_error():
    class Broken(Recorder):
        def __call__(self, frame):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure({"a": Broken([], "a")}, {"a": 1}, cycle=1, calls=1, settle=0, seconds=0.0)
    assert gc.isenabled()


def test_engines_that_go_round_buffers_have_used_each_before_calls_count():
    log = []
    runs = {name: Recorder(log, name) for name in "ab"}
    runs["b"].buffers = 5
    options = {"cycle": 100, "calls": 1, "settle": 2, "seconds": 0.0, "least_rounds": 1}
    timings = measure(runs, dict.fromkeys(runs, 1), **options)
    assert [sum(who == name for who, _ in log) for name in "ab"] == [2 * 3, 2 * 6]
    assert {timing.calls for timing in timings.values()} == {1}
