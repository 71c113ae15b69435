"""Learning rates that were too high or too low, told from the epochs of training."""

from itertools import pairwise

import pandas as pd

from pipeline.diagnosis import Verdict

# Too high: the loss rises between epochs, often or far, while training does not get on.
RISE, RISES, FAR_RISE = 1.10, 2, 1.50
LITTLE_FALL = 0.8
# Too low: over the last epochs training gets on as fast as ever, and is not yet ahead of validation.
LAST_EPOCHS = 3
STEADY_SHARE = 0.8
FALL_THAT_COUNTS = 0.03
OVERFITTING_SHARE = 0.8
TIMES_LOWER, TIMES_HIGHER = 3, 3


def judge_rates(epochs: pd.DataFrame) -> list[Verdict]:
    """A verdict for each training run whose rate was too high or too low; none for the others.

    `epochs` is the table of `history.join_epochs`; epochs on stored activations are judged by themselves. An
    annealed rate ends near zero, so that a loss that still falls there as fast as before says that all of
    the cycle was too low.
    """
    found = []
    for _, run in epochs.groupby(["run_id", "phase"], sort=False):
        stage, rate = str(run["stage"].iloc[0]), float(run["rate"].iloc[0])
        train, valid = run["train_loss"].tolist(), run["valid_loss"].tolist()
        if _is_too_high(train, valid):
            found.append(
                Verdict(
                    "too high a rate",
                    f"The rate of {stage}, {rate:.2g} at its top, was too high: by epoch the training loss went "
                    f"{_spell(train)} and the validation loss {_spell(valid)}. Try a lower rate.",
                    {f"{stage}.lr": _round(rate / TIMES_LOWER)},
                )
            )
        elif _is_too_low(train, valid):
            found.append(
                Verdict(
                    "too low a rate",
                    f"The rate of {stage}, {rate:.2g} at its top, was too low, or the stage too short: the training "
                    f"loss still fell as fast at the end as before ({_spell(train)}), with a validation loss of "
                    f"{valid[-1]:.3f}. Try a higher rate, or more epochs.",
                    {f"{stage}.lr": _round(rate * TIMES_HIGHER)},
                )
            )
    return found


def _is_too_high(train: list[float], valid: list[float]) -> bool:
    if len(train) < 2:
        return False
    rises = [after / max(before, 1e-9) for before, after in pairwise(valid)]
    is_jumping = sum(rise > RISE for rise in rises) >= RISES or max(rises) > FAR_RISE
    return train[-1] > RISE * train[0] or (is_jumping and train[-1] > LITTLE_FALL * train[0])


def _is_too_low(train: list[float], valid: list[float]) -> bool:
    if len(train) < LAST_EPOCHS:
        return False
    last = train[-LAST_EPOCHS:]
    falls = [before - after for before, after in pairwise(last)]
    mean = sum(falls) / len(falls)
    is_steady = min(falls) > 0 and falls[-1] >= STEADY_SHARE * mean and last[0] - last[-1] > FALL_THAT_COUNTS * last[0]
    return is_steady and train[-1] > OVERFITTING_SHARE * valid[-1] and valid[-1] < RISE * min(valid)


def _spell(losses: list[float]) -> str:
    shown = losses if len(losses) <= 6 else [*losses[:2], *losses[-4:]]
    words = [f"{loss:.3f}" for loss in shown]
    if len(losses) > 6:
        words.insert(2, "…")
    return " → ".join(words)


def _round(rate: float) -> float:
    return float(f"{rate:.1e}")
