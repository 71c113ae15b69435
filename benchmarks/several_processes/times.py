"""What each stage takes, of it the parts that the leader spends its time in, and what its threads do meanwhile."""

import pkgutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from pipeline.ranks.exchange import ask_all
from pipeline.ranks.team import processes, together

SHORTEST_SECONDS = 0.01
# The parts of a stage, by the functions of the leader that spend its time.
PARTS = {
    "stages.work.precompute.open_run_pixels": "pixels",
    "stages.work.precompute.write_manifest_figures": "figures",
    "stages.work.precompute.open_activations": "activations",
    "stages.work.evaluate.open_networks": "pixels",
    "stages.work.evaluate.cross_validate": "cross-validation",
    "pipeline.evaluation.evaluation.predict_members": "predictions",
    "pipeline.evaluation.evaluation.near_duplicates": "near-duplicates",
    "stages.work.evaluate.write_evaluation": "report",
    "stages.work.evaluate.save_neighbours": "neighbours",
    "stages.work.evaluate.publish": "served model",
}
# Those that all processes do together.
SHARED = ("pixels", "activations", "predictions")
# What is done within the parts, by any thread of the leader.
WITHIN = {
    "pipeline.data.decoded_pixels.DecodedPixels.read": "reading files for a GPU",
    "pipeline.data.decoded_pixels.decode_squares": "decoding on a GPU",
    "pipeline.cache.row_file._write_after": "writing pixels",
    "os.fsync": "waiting for the disk",
    "pipeline.models.engine.spread.Spread.provide": "giving helpers the network",
    "pipeline.ranks.exchange.receive_array": "waiting for helpers",
    "pipeline.data.joint.decoding.receive_array": "waiting for helpers",
    "pipeline.tracking.artifacts.enqueue": "logging",
    "pipeline.tracking.artifacts.flush": "logging",
}


class Times:
    """What each stage took, by its name: the seconds of the `leader`, of the busiest `helper`, and of the leader's
    `parts`."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.stages: dict[str, dict[str, Any]] = {}
        self._seconds = seconds
        self._parts, self._within = defaultdict[str, float](float), defaultdict[str, float](float)

    def stage(self, what: str, work: Callable[[], Any]) -> Any:
        """What the work gives; what it took is printed."""
        self._parts.clear()
        self._within.clear()
        before, started = everywhere(self._seconds), time.monotonic()
        result = work()
        clock = time.monotonic() - started
        leader, *helpers = (end - start for start, end in zip(before, everywhere(self._seconds), strict=True))
        parts = dict(self._parts)
        self.stages[what] = {"leader": leader, "helper": max(helpers, default=None), "parts": parts}
        told = [f"{name} {seconds:.2f}" for name, seconds in [*parts.items(), ("else", leader - sum(parts.values()))]]
        within = [f"{name} {seconds:.2f}" for name, seconds in self._within.items() if seconds >= SHORTEST_SECONDS]
        print(f"  {what}: {leader:.2f} s ({clock:.2f} by the clock): {', '.join(told)}", file=sys.stderr)
        print(f"    meanwhile {', '.join(within) or 'nothing else'}", file=sys.stderr, flush=True)
        return result

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as this part."""
        return self._timed(self._parts, name, function, self._seconds)

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as something within the parts."""
        return self._timed(self._within, name, function, time.monotonic)

    @staticmethod
    def _timed(
        taken: dict[str, float], name: str, function: Callable[..., Any], seconds: Callable[[], float]
    ) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = seconds()
            try:
                return function(*arguments, **options)
            finally:
                taken[name] += seconds() - started

        return timed


@contextmanager
def parts_timed(times: Times) -> Iterator[None]:
    """Within the block PARTS and WITHIN are timed."""
    with ExitStack() as stack:
        for functions, timed in ((PARTS, times.part), (WITHIN, times.within)):
            for function, name in functions.items():
                owner_name, _, attribute = function.rpartition(".")
                owner = pkgutil.resolve_name(owner_name)
                stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def everywhere(ask: Callable[[], Any]) -> list[Any]:
    """What `ask` gives in each process, by number."""
    if processes() == 1:
        return [ask()]
    with together(answer, ask):
        return ask_all(ask())


def answer(ask: Callable[[], Any]) -> None:
    """A helper's part."""
    ask_all(ask())
