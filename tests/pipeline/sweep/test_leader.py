import time
from itertools import pairwise

import optuna
import pytest

from pipeline.sweep.leader import LEADER, Leadership
from pipeline.sweep.study import open_storage, open_study
from pipeline.system.processes import identity

ELSEWHERE = "another-machine:1:0.00"


@pytest.fixture
def study(url: str, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    monkeypatch.setattr("pipeline.sweep.leader.SECONDS_TO_SETTLE", 0.01)
    return open_study(open_storage(url, 1, make_tables=False), "cells", ["valid/accuracy"])


def lead_from(study: optuna.Study, process: str, seconds: float) -> None:
    study.set_user_attr(LEADER, {"process": process, "until": time.time() + seconds})


def test_the_first_one_leads_and_stays_so(study: optuna.Study) -> None:
    assert Leadership(study, 60).take()
    assert Leadership(study, 60).take()


def test_where_another_machine_leads_nobody_else_does(study: optuna.Study) -> None:
    lead_from(study, ELSEWHERE, 60)
    leadership = Leadership(study, 60)
    assert not leadership.take()
    assert leadership.leader() == "another-machine"


def test_a_leader_that_is_silent_for_too_long_is_replaced(study: optuna.Study) -> None:
    lead_from(study, ELSEWHERE, -1)
    assert Leadership(study, 60).take()


def test_a_leader_of_this_machine_that_was_killed_is_replaced_at_once(study: optuna.Study) -> None:
    machine = identity().split(":")[0]
    lead_from(study, f"{machine}:999999999:0.00", 60)
    assert Leadership(study, 60).take()


def test_of_two_that_take_it_at_once_the_later_has_it(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sweep.leader.time.sleep", lambda seconds: lead_from(study, ELSEWHERE, 60))
    assert not Leadership(study, 60).take()


def test_a_lead_that_is_kept_is_renewed_before_it_lapses_and_given_up_at_the_end(study: optuna.Study) -> None:
    leadership = Leadership(study, 4.0)
    assert leadership.take()
    known = [study.user_attrs[LEADER]["until"]]
    with leadership.kept():
        while len(known) < 3:  # renewed while this process does something else
            time.sleep(0.05)
            until = study.user_attrs[LEADER]["until"]
            known += [until] if until > known[-1] else []
    assert all(later - earlier < 4.0 for earlier, later in pairwise(known))
    assert study.user_attrs[LEADER]["until"] == 0.0


def test_a_lead_that_another_has_taken_is_left_to_it(study: optuna.Study) -> None:
    leadership = Leadership(study, 0.2)
    assert leadership.take()
    with leadership.kept():
        lead_from(study, ELSEWHERE, 60)
        time.sleep(0.2)
        assert not leadership.is_free()
    assert study.user_attrs[LEADER]["process"] == ELSEWHERE


def test_nothing_is_written_if_it_is_interrupted(study: optuna.Study) -> None:
    leadership = Leadership(study, 60)
    assert leadership.take()
    before = study.user_attrs[LEADER]
    with pytest.raises(KeyboardInterrupt), leadership.kept():
        raise KeyboardInterrupt
    assert study.user_attrs[LEADER] == before
