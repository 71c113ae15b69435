"""What the benchmark of several processes times is there, and stays as it is."""

import os
import time

from benchmarks.several_processes.__main__ import compare
from benchmarks.several_processes.times import PARTS, SHARED, Times, parts_timed
from pipeline.evaluation import evaluation


def test_the_functions_that_are_timed_exist_and_are_put_back():
    before = evaluation.near_duplicates, os.fsync
    with parts_timed(Times(time.monotonic)):
        assert evaluation.near_duplicates is not before[0]
        assert os.fsync is not before[1]
    assert (evaluation.near_duplicates, os.fsync) == before
    assert set(SHARED) <= set(PARTS.values())


def test_what_a_stage_takes_is_counted_by_part(capsys):
    clock = iter([0.0, 1.0, 4.0, 10.0])
    times = Times(lambda: next(clock))
    sum_in_part = times.part("pixels", sum)
    assert times.stage("precompute", lambda: sum_in_part([1, 2])) == 3
    assert times.stages == {"precompute": {"leader": 10.0, "helper": None, "parts": {"pixels": 3.0}}}
    assert "precompute: 10.00 s" in capsys.readouterr().err


def found(seconds: list[float], pixels: float, mib: list[int]) -> dict:
    leader, *helpers = seconds
    stage = {"leader": leader, "helper": max(helpers, default=None), "parts": {"pixels": pixels, "report": 1.0}}
    return {"stages": {"precompute": stage}, "memory": mib, "own memory": mib}


def test_rounds_are_compared_by_their_medians_and_the_busiest_process():
    rounds = [
        (found([10.0], 8.0, [900]), found([4.0, 5.0], 4.0, [800, 1_700])),
        (found([12.0], 8.0, [1_000]), found([4.0, 3.0], 2.0, [700, 600])),
        (found([40.0], 8.0, [950]), found([8.0, 3.0], 4.0, [700, 600])),
    ]
    stage, part, memory, own = compare(rounds)
    assert stage.strip() == "precompute: 12.0 by one, 5.0 by the busiest of several: 3.00 x (2.00 to 5.00)"
    assert part.strip() == "pixels: 8.0 by one, 4.0 by the busiest of several: 2.00 x (2.00 to 4.00)"
    assert memory.strip() == "memory at most, MiB: 1,000 by one, 800 and 1,700 by each"
    assert own.startswith("  own memory")


def test_one_round_has_no_spread():
    assert next(compare([(found([10.0], 8.0, [1]), found([4.0, 5.0], 4.0, [1, 1]))])).endswith("several: 2.00 x")
