"""Which of several commands on one study is its leader, which keeps its run and trains its best recipe."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from pipeline.system.processes import identity, is_alive

LEADER = "leader"
SECONDS_TO_SETTLE = 1.0
RENEWALS = 4  # within the seconds for which a lead holds


class Leadership:
    """The lead of a study, held for `seconds` at a time, so that another process takes over if the leader is killed."""

    def __init__(self, study: optuna.Study, seconds: float) -> None:
        self._study = study
        self._seconds = seconds

    def take(self) -> bool:
        """Take the lead if no other process has it; whether this one leads now."""
        if not self.is_free():
            return False
        was_own = self._is_own()
        self._write(time.time() + self._seconds)
        if not was_own:
            time.sleep(SECONDS_TO_SETTLE)  # if two take it at once, the later one leads
        return self._is_own()

    def is_free(self) -> bool:
        """Whether no other process leads."""
        leader = self._study.user_attrs.get(LEADER)
        return leader is None or self._is_own() or not _holds(leader)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lead in the background during the block, unless another process took it; give it up at the end.

        If the block is interrupted the lead lapses by itself: a query that Ctrl-C has cut short may still lock the
        database, so that nothing could be written.
        """
        is_over = threading.Event()

        def renew() -> None:
            while not is_over.wait(self._seconds / RENEWALS):
                with suppress(SQLAlchemyError, StorageInternalError):  # it is tried again
                    if self._is_own():
                        self._write(time.time() + self._seconds)

        thread = threading.Thread(target=renew, name="leadership", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
        if self._is_own():
            self._write(0.0)

    def leader(self) -> str:
        """The machine of the leader."""
        return str(self._study.user_attrs[LEADER]["process"]).split(":")[0]

    def _is_own(self) -> bool:
        leader = self._study.user_attrs.get(LEADER)
        return leader is not None and leader["process"] == identity()

    def _write(self, until: float) -> None:
        self._study.set_user_attr(LEADER, {"process": identity(), "until": until})


def _holds(leader: dict[str, object]) -> bool:
    return is_alive(str(leader["process"])) is not False and float(str(leader["until"])) > time.time()
