"""Which of several commands on one study leads it: keeps its run, ends it, and trains its best recipe."""

import time

import optuna

from pipeline.processes import identity, is_alive

LEADER = "leader"
SECONDS_TO_SETTLE = 1.0
LEASES = 4  # a leader renews this often within the time that its word holds


class Lease:
    """The lead of a study, had for `seconds` at a time, so that another takes over where the leader is gone."""

    def __init__(self, study: optuna.Study, seconds: float) -> None:
        self._study = study
        self._seconds = seconds
        self._renewed = 0.0

    def take(self) -> bool:
        """Whether this process leads: it did before, or there is no other that does."""
        leader = self._study.user_attrs.get(LEADER)
        if leader is not None and leader["process"] != identity() and self._holds(leader):
            return False
        self._write(time.time() + self._seconds)
        if leader is None or leader["process"] != identity():
            time.sleep(SECONDS_TO_SETTLE)  # where two take it at once, the later one has it
        return bool(self._study.user_attrs[LEADER]["process"] == identity())

    def renew(self) -> None:
        """To be called often; writes now and then."""
        if time.monotonic() - self._renewed >= self._seconds / LEASES:
            self._write(time.time() + self._seconds)

    def give_up(self) -> None:
        """Let any other lead."""
        self._write(0.0)

    def leader(self) -> str:
        """The machine of the leader."""
        return str(self._study.user_attrs[LEADER]["process"]).split(":")[0]

    def _holds(self, leader: dict[str, object]) -> bool:
        return is_alive(str(leader["process"])) is not False and float(str(leader["until"])) > time.time()

    def _write(self, until: float) -> None:
        self._study.set_user_attr(LEADER, {"process": identity(), "until": until})
        self._renewed = time.monotonic()
