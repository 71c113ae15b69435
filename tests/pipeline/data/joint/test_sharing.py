"""What helpers compute a share of comes back in order, whatever the number of things and processes."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.joint.sharing import shared
from pipeline.ranks.exchange import ask_all
from pipeline.ranks.team import deal, together
from tests.several_processes import run_led


def by_whom(items: Sequence[int]) -> list[tuple[int, int]]:
    return [(item, deal().number) for item in items]


def lead(folder: Path, counts: Sequence[int]) -> None:
    with shared(by_whom) as of_all:
        found = [of_all(range(count)) for count in counts]
    (folder / "found").write_text(repr(found))


def test_every_process_has_its_share_and_the_results_come_in_order(tmp_path):
    run_led(lead, tmp_path, (7, 1, 0, 3), processes=3, cache=tmp_path / "cache")
    found = eval((tmp_path / "found").read_text())
    assert [[item for item, _ in one] for one in found] == [list(range(count)) for count in (7, 1, 0, 3)]
    assert [number for _, number in found[0]] == [0, 0, 0, 1, 1, 2, 2]


def test_a_process_alone_calls_the_function_itself():
    with shared(by_whom) as of_all:
        assert of_all is by_whom


def lead_that_stops(folder: Path) -> None:
    def some():
        with shared(by_whom) as of_all:
            yield of_all(range(4))
            raise AssertionError

    stopped = some()
    next(stopped)
    stopped.close()
    with together(answer):
        (folder / "answers").write_text(str(ask_all("heard")))


def answer() -> None:
    ask_all("heard")


def test_helpers_stop_where_the_leader_does_and_hear_the_next_call(tmp_path):
    run_led(lead_that_stops, tmp_path, cache=tmp_path / "cache")
    assert (tmp_path / "answers").read_text() == "['heard', 'heard']"
