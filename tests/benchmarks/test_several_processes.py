"""What the benchmark of several processes times is there, and stays as it is."""

import os
import time

from benchmarks.several_processes import PARTS, SHARED, Times, parts_timed
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
