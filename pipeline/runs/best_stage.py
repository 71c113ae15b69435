"""Which stage's network is evaluated: the one that validates best, whose name and reason are told."""

from collections.abc import Mapping

from pipeline.tracking import RunRef
from pipeline.training.records import kept_name

ACCURACY, LOSS = kept_name("valid/accuracy"), kept_name("valid/loss")


def best_stage(done: Mapping[str, RunRef]) -> tuple[str, str]:
    """(The name of the stage whose network has the highest validation accuracy, a sentence that says why); of equal
    ones the one with the lower loss, then the last. `done` are finished runs by the stage's name, in their order.

    Nothing but the validation split decides.
    """
    trained = {name: ref.metrics for name, ref in done.items() if ACCURACY in ref.metrics}
    names = list(trained)
    best = max(names, key=lambda name: (trained[name][ACCURACY], -trained[name][LOSS], names.index(name)))
    others = [name for name in names if name != best]
    if not others:
        return best, f"The network of {best} is evaluated, the only one trained."
    told = f"valid accuracy {trained[best][ACCURACY]:.4f}, loss {trained[best][LOSS]:.4f}"
    beaten = ", ".join(f"{name} {trained[name][ACCURACY]:.4f}, {trained[name][LOSS]:.4f}" for name in others)
    if best == names[-1]:
        return (
            best,
            f"The network of {best}, the last stage, is evaluated, since none validates better: {told} ({beaten}).",
        )
    return best, f"The network of {best} is evaluated and not the last one, since it validates best: {told} ({beaten})."
