"""Leading and helping: the leader calls a function on all processes, and the helpers wait for such calls.

    with led(rank):                                  # in the leader
        with together(work_of_helpers, arguments):   # the helpers run work_of_helpers(arguments)
            ...                                      # the leader's own part, with the same exchanges
    help_leader(rank)                                # in each helper: until the leader ends

An error in one of the processes ends all: the leader raises it, in whatever it does together with the others.
"""

import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pipeline.ranks.attempt import attempt_name
from pipeline.ranks.deal import ALONE, Deal
from pipeline.ranks.environment import Rank
from pipeline.ranks.watch import ENDED, Failure, Watch, tell_failure
from pipeline.system.console import warn
from pipeline.system.errors import Interrupted, Pruned, UserError
from pipeline.system.memory import return_freed_memory
from pipeline.system.processes import explain_stops

# How long a process waits for the others: for all to have started, and in an exchange.
SECONDS_TO_JOIN = 1800.0
DEADLINE = "THAW_DEADLINE_SECONDS"
DEADLINE_SECONDS = "600"
# An exchange fails before it is known what became of the other process.
SECONDS_TO_HEAR = 3.0
SECONDS_TO_NOTICE = 0.5
SECONDS_TO_CLOSE, SECONDS_TO_END = 5.0, 15.0
SECONDS_BETWEEN_LOOKS = 0.01
STOPPED_STATUS = 130
CALL, CALLED, END, LEFT = "call", "called", "end", "left"


class Session:
    """This process among the others: `rank`, the `store` that they all see, and the watch over them."""

    def __init__(self, rank: Rank, store: Any) -> None:
        self.rank, self.calls = rank, 0
        self.store = PrefixStore("thaw", store)
        self.watch = Watch(PrefixStore("thaw", store.clone()), rank.number, rank.processes, self.abort_gpus)

    def abort_gpus(self) -> None:
        """End what waits on a GPU for other processes. On a CPU that ends as soon as one of them leaves."""
        with suppress(Exception):  # there may be no GPU, or no exchange between them yet
            dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).abort()

    def announce(self, word: str) -> None:
        """Tell the helpers of the next call, or of the end."""
        self.store.set(f"{CALL}/{self.calls}", word)
        self.calls += 1

    def explained(self, error: BaseException) -> BaseException:
        """The failure of another process, if that is what `error` comes from; else itself."""
        if isinstance(error, UserError | Pruned) and self.watch.failure is None:
            return error
        heard = self.watch.wait_for_failure(SECONDS_TO_HEAR)
        if heard is not None and heard.number != self.rank.number:
            return heard.error
        if isinstance(error, dist.DistError) or "timed out" in str(error).lower():
            return Interrupted(
                f"The processes have waited for one another for more than {_deadline_seconds():g} s "
                f"({_first_line(error)}); run the same command again, which resumes from the last backup."
            )
        return error

    def lost(self) -> str:
        """What became of another process, in a sentence; empty if nothing is known. A launcher that finds one gone
        stops the others before they have noticed."""
        heard = self.watch.wait_for_failure(SECONDS_TO_NOTICE)
        return "" if heard is None else heard.sentence


_session: Session | None = None


def processes() -> int:
    """How many processes work together here; 1 unless several were started."""
    return 1 if _session is None else _session.rank.processes


def deal(parts: int = 1) -> Deal:
    """What this process gets of the work; see `Deal`."""
    return ALONE if _session is None else Deal(_session.rank.number, _session.rank.processes, parts)


def check_all() -> None:
    """Raises what another process has met, if it is known: from then on an exchange on a GPU may give anything."""
    if _session is not None and _session.watch.failure is not None:
        raise _session.explained(RuntimeError(_session.watch.failure.sentence))


@contextmanager
def led(rank: Rank) -> Iterator[None]:
    """Within the block this process leads the others; at its end they leave."""
    if rank.processes == 1:
        yield
        return
    session = _join(rank)
    try:
        yield
    finally:
        _leave(session)


@contextmanager
def together(function: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Within the leader's block the helpers run `function(*arguments)`, which makes the same exchanges as the block.
    The function must be found by its name, and the arguments be picklable. Without helpers it is a plain block.

    Raises the error of a helper: UserError if it is one, Interrupted if a helper is gone, else HelperError.
    """
    session = _session
    if session is None:
        yield
        return
    try:
        session.announce(CALLED)
        dist.broadcast_object_list([pickle.dumps((function, arguments))], src=0)
        yield
    except GeneratorExit:
        raise
    except Exception as error:
        cause = session.explained(error)
        if cause is error:
            raise
        raise cause from error
    check_all()


def help_leader(rank: Rank) -> int:
    """Do what the leader calls for, until it ends; gives the exit status, STOPPED_STATUS if this process was asked to
    stop meanwhile."""
    session = _join(rank)
    _note_signals(session.watch)
    sys.stdout = None  # the leader speaks for all
    status = _helped(session)
    return STOPPED_STATUS if session.watch.is_asked_to_stop else status


def _helped(session: Session) -> int:
    try:
        while _next_call(session) == CALLED:
            received: list[Any] = [None]
            dist.broadcast_object_list(received, src=0)
            function, arguments = pickle.loads(received[0])
            function(*arguments)
            return_freed_memory()  # as the leader does after each stage: the next call's blocks have other sizes
    except Exception as error:
        return _give_up(session, error)
    finally:
        _close_groups(session)
        session.watch.stop()
    with suppress(RuntimeError):
        session.store.set(f"{LEFT}/{session.rank.number}", "")
    return 0


def _join(rank: Rank) -> Session:
    global _session
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=SECONDS_TO_JOIN)))
    store = PrefixStore(attempt_name(store, rank, SECONDS_TO_JOIN), store)
    session = Session(rank, store)
    # On an error or a deadline torch would end the process, before its run is closed.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    dist.init_process_group(
        _backend(rank, session.store),
        store=PrefixStore("groups", store),
        rank=rank.number,
        world_size=rank.processes,
        timeout=timedelta(seconds=_deadline_seconds()),
    )
    session.watch.start()
    explain_stops(session.lost)
    _session = session
    return session


def _backend(rank: Rank, store: Any) -> str:
    """gloo, and NCCL beside it if all processes have a GPU."""
    store.set(f"gpu/{rank.number}", str(int(torch.cuda.is_available())))
    names = [f"gpu/{number}" for number in range(rank.processes)]
    store.wait(names, timedelta(seconds=SECONDS_TO_JOIN))
    return "cpu:gloo,cuda:nccl" if all(store.get(name) == b"1" for name in names) else "gloo"


def _leave(session: Session) -> None:
    """Let the helpers go. The store may be this process's own, so that it waits until they have left."""
    global _session
    _session = None
    session.watch.stop()
    with suppress(RuntimeError):  # the store is gone, and all with it
        session.announce(END)
        session.store.set(ENDED, "")
    _close_groups(session)
    if session.watch.failure is None:
        helpers = [f"{LEFT}/{number}" for number in range(1, session.rank.processes)]
        with suppress(RuntimeError):
            session.store.wait(helpers, timedelta(seconds=SECONDS_TO_CLOSE))


def _close_groups(session: Session) -> None:
    """Let go of the others. Where one of them is gone, NCCL may wait for it for ever, and so may the end of this
    process; then it ends by force."""
    if session.watch.failure is not None and torch.cuda.is_available():
        nowhere = open(os.devnull, "w")  # noqa: SIM115 — read at the very end
        faulthandler.dump_traceback_later(SECONDS_TO_END, exit=True, file=nowhere)

    def close() -> None:
        session.abort_gpus()
        with suppress(Exception):
            dist.destroy_process_group()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(SECONDS_TO_CLOSE)


def _next_call(session: Session) -> str:
    """The next word of the leader."""
    key = f"{CALL}/{session.calls}"
    session.calls += 1
    while not session.watch.has_ended and session.watch.failure is None:
        if session.store.check([key]):
            return str(session.store.get(key).decode())
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return END


def _give_up(session: Session, error: Exception) -> int:
    """Tell the others of an error that is not theirs, and wait until the leader has closed its run; the exit status."""
    watch = session.watch
    is_mistake = isinstance(error, UserError)
    if not is_mistake:
        watch.wait_for_failure(SECONDS_TO_HEAR)
    if watch.has_ended:
        return 0
    if watch.failure is None:
        name = watch.name_of(session.rank.number)
        if not is_mistake:
            warn("".join(traceback.format_exception(error)))
        sentence = str(error) if is_mistake else f"In {name}: {type(error).__name__}: {_first_line(error)}"
        tell_failure(session.store, Failure(session.rank.number, sentence, is_mistake))
    _close_groups(session)  # which wakes those that wait for this process
    while not watch.has_ended:  # the watch ends this process if the leader is gone
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return 1 if watch.failure is None or watch.failure.number == session.rank.number else 0


def _note_signals(watch: Watch) -> None:
    """Ctrl-C and SIGTERM are for the leader, which saves its work and lets this process go."""

    def note(number: int, frame: FrameType | None) -> None:
        watch.is_asked_to_stop = True

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)


def _deadline_seconds() -> float:
    """How long an exchange may take; networks and tests may need another time."""
    return float(os.environ.get(DEADLINE, DEADLINE_SECONDS))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
