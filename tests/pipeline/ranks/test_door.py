import signal
import subprocess
import sys

import pytest

from pipeline.ranks.door import asked_processes, help_leader
from pipeline.ranks.environment import Rank
from pipeline.system.errors import UserError
from tests.workplace import PROJECT

FIRST_OF_TWO = Rank(0, 2, 0, 2)


@pytest.mark.parametrize(
    ("words", "rank", "count"),
    [
        ([], Rank(), 1),
        (["--processes", "3", "--seed", "1"], Rank(), 3),
        (["--seed=1", "--processes=3"], Rank(), 3),
        ([], FIRST_OF_TWO, 2),
        (["--processes", "2"], FIRST_OF_TWO, 2),
        (["--processes", "1"], FIRST_OF_TWO, 2),
    ],
)
def test_the_option_or_torchrun_says_how_many_processes_there_are(words, rank, count):
    assert asked_processes("main", words, rank) == count


@pytest.mark.parametrize("given", ["0", "two", "-1", "1.5", ""])
def test_other_numbers_are_refused(given):
    with pytest.raises(UserError, match=f"^processes is '{given}'; give a whole number from 1 up.$"):
        asked_processes("main", ["--processes", given], Rank())


def test_two_numbers_that_differ_are_refused():
    with pytest.raises(UserError, match=r"^processes is 4, but torchrun has started 2; leave processes out\.$"):
        asked_processes("main", ["--processes", "4"], FIRST_OF_TWO)


@pytest.mark.parametrize(("name", "why"), [("sweep", "its trials have processes of their own"), ("compare", "nothing")])
@pytest.mark.parametrize(("words", "rank"), [(["--processes=2"], Rank()), ([], FIRST_OF_TWO)])
def test_some_commands_are_for_one_process(name, why, words, rank):
    with pytest.raises(UserError, match=f"^{name} is done by one process, since .*{why}"):
        asked_processes(name, words, rank)


def test_a_helper_of_a_command_that_shows_its_help_leaves():
    with pytest.raises(SystemExit) as ended:
        help_leader(Rank(1, 2, 1, 2), ["--recipe", "a.yaml", "--help"])
    assert ended.value.code == 0


STOPPED_WHILE_IT_LOADS = """
import importlib, os, signal
from pipeline.ranks.door import help_leader
from pipeline.ranks.environment import Rank
importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)
help_leader(Rank(1, 2, 1, 2), [])
"""


def test_a_helper_that_is_stopped_while_it_loads_its_libraries_says_nothing():
    done = subprocess.run([sys.executable, "-c", STOPPED_WHILE_IT_LOADS], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", -signal.SIGINT)
