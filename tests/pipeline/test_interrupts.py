import os
import signal
import threading

import pytest

from pipeline.interrupts import put_off


def receive(*numbers: signal.Signals, then: Exception | None = None) -> list[bool]:
    """Be sent these signals within the block: whether it was noted, after each."""
    seen: list[bool] = []
    with put_off() as stopped:
        for number in numbers:
            os.kill(os.getpid(), number)
            seen.append(stopped())
        reached.append(seen)
        if then is not None:
            raise then
    return seen


reached: list[list[bool]] = []


@pytest.fixture(autouse=True)
def _forget():
    reached.clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_acts_at_the_end_of_the_block(number):
    with pytest.raises(KeyboardInterrupt):
        receive(number)
    assert reached == [[True]]


def test_a_second_ctrl_c_acts_at_once():
    with pytest.raises(KeyboardInterrupt):
        receive(signal.SIGINT, signal.SIGINT)
    assert not reached


def test_the_sigterm_that_follows_a_ctrl_c_does_not_hurry():
    with pytest.raises(KeyboardInterrupt):
        receive(signal.SIGINT, signal.SIGTERM)
    assert reached == [[True, True]]


def test_without_a_signal_nothing_happens_and_the_handlers_are_as_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    receive()
    assert reached == [[]]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_within_the_block_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="in hand"):
        receive(signal.SIGTERM, then=ValueError("in hand"))


def test_in_another_thread_nothing_is_put_off_and_nothing_breaks():
    thread = threading.Thread(target=receive)
    thread.start()
    thread.join()
    assert reached == [[]]
