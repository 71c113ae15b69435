"""Verdicts on a model, its pictures and its learning rates: the numbers behind each, and what to try next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pandas as pd

from pipeline.system.errors import UserError

# Below this difference in nats no ratio matters: both losses are small, or noise decides.
SMALLEST_GAP = 0.05
OVERFIT_RATIO = 1.5
STRONG_RATIO = 3.0
# A training loss above this share of the loss of guessing means under-fitting.
UNDERFIT_SHARE = 0.8
MORE_DROPOUT, MOST_DROPOUT = 0.2, 0.8
# A class is reported if the largest has this many times its pictures, and its recall is this far below the accuracy.
IMBALANCE_RATIO, IMBALANCE_RECALL = 2.0, 0.10
# The share of held-out pictures with a twin in training that is tolerated.
LEAKED_SHARE = 0.01
# Test accuracy above validation accuracy by more than chance explains (in standard errors), and than matters.
SUSPICIOUS_ERRORS, SUSPICIOUS_GAP = 3.0, 0.05
FEWEST_TO_TRAIN = 20
WIDEST_INTERVAL = 0.10
# Too high: the validation loss rises, often or far, while the training loss hardly falls.
RISE, RISES, FAR_RISE = 1.10, 2, 1.50
LITTLE_FALL = 0.8
# Too low: over the last epochs the training loss falls as fast as ever, and is not yet below the validation loss.
LAST_EPOCHS = 3
STEADY_SHARE = 0.8
FALL_THAT_COUNTS = 0.03
OVERFITTING_SHARE = 0.8
TIMES_LOWER, TIMES_HIGHER = 3, 3


@dataclass(frozen=True)
class Verdict:
    """`name` is the finding in a word or two, `words` give the numbers behind it and what to try next; `changes` are
    the keys of the recipe, with their values, to try it with, if a key can help."""

    name: str
    words: str
    changes: Mapping[str, object] = field(default_factory=dict)


def diagnose_overfitting(
    train_loss: float, valid_loss: float, chance_loss: float, fine_tune_cycles: int, head_dropout: float
) -> Verdict:
    """Over-fitting, strongly over-fitting, under-fitting or good: the verdict on a model with these mean
    cross-entropies on plain, un-augmented pictures.

    `chance_loss` is the loss of guessing by the classes' shares. Training loss far below validation loss means
    over-fitting; a training loss near chance means under-fitting. The next thing to try starts from the recipe's
    `fine_tune_cycles` and `head_dropout`. UserError for losses that are no numbers.
    """
    if not (math.isfinite(train_loss) and math.isfinite(valid_loss)):
        raise UserError(f"The losses are no numbers (training {train_loss}, validation {valid_loss}); lower the rates.")
    gap = valid_loss - train_loss
    ratio = valid_loss / max(train_loss, 1e-9)
    numbers = f"training loss {train_loss:.3f}, validation loss {valid_loss:.3f}"
    if train_loss > UNDERFIT_SHARE * chance_loss:
        return Verdict(
            "under-fitting",
            f"The model under-fits: {numbers}, and guessing alone gives {chance_loss:.3f}. Train longer "
            "(fine_tune.cycles + 1), or with a higher rate (fine_tune.lr), or on a larger image (resize.image_px).",
            {"fine_tune.cycles": fine_tune_cycles + 1},
        )
    if gap > SMALLEST_GAP and ratio > OVERFIT_RATIO:
        strongly = ratio > STRONG_RATIO
        dropout = min(round(head_dropout + MORE_DROPOUT, 2), MOST_DROPOUT)
        can_rise = dropout > head_dropout
        return Verdict(
            "strongly over-fitting" if strongly else "over-fitting",
            f"The model {'strongly ' if strongly else ''}over-fits: {numbers}, {_times(ratio)} the training loss. "
            f"Add pictures, vary them more (augment.*), raise weight_decay{' or head.dropout' if can_rise else ''}, or "
            "train shorter.",
            {"head.dropout": dropout} if can_rise else {},
        )
    return Verdict("good", f"No over-fitting to speak of: {numbers}.")


def diagnose_balance(
    training_counts: pd.Series, recalls: pd.Series, accuracy: float, positive: str | None
) -> Verdict | None:
    """Class imbalance, if the recall of a rarer class is far below the accuracy.

    `training_counts` and `recalls` (NaN for a class that is not evaluated) are by class; `positive` is the class whose
    operating points are listed already.
    """
    largest = str(training_counts.idxmax())
    rare = training_counts[training_counts * IMBALANCE_RATIO <= training_counts.max()].index
    missed = recalls.reindex(rare).dropna()
    missed = missed[missed < accuracy - IMBALANCE_RECALL].sort_values()
    if missed.empty:
        return None
    worst = str(missed.index[0])
    others = f", and {len(missed) - 1} more rare classes" if len(missed) > 1 else ""
    return Verdict(
        "class imbalance",
        f"{worst} has {training_counts[worst]} training pictures where {largest} has {training_counts[largest]}, and "
        f"only {missed.iloc[0]:.0%} of its pictures are found{others}, at an overall accuracy of {accuracy:.1%}. Add "
        "pictures of it, or choose a threshold that finds more of them from its operating points.",
        {} if worst == positive else {"evaluate.positive_class": worst},
    )


def diagnose_leakage(
    twins: int, same_files: int, pictures: int, split: str, accuracy: float, accuracy_without: float
) -> Verdict | None:
    """Leakage: of the `pictures` of the `split` evaluated, `twins` have a near-duplicate in training, `same_files` of
    them the very same file; `accuracy_without` is that on the others (NaN where there are none)."""
    if same_files == 0 and twins <= LEAKED_SHARE * pictures:
        return None
    without = "" if math.isnan(accuracy_without) else f", and on the others {accuracy_without:.4f}"
    return Verdict(
        "leakage",
        f"{twins} of {pictures} {split} pictures ({twins / pictures:.1%}) have a near-duplicate in training, "
        f"{same_files} of them the same file. The accuracy on all is {accuracy:.4f}{without}. Look through "
        "near_duplicates.csv, and keep what shows the same thing in one split (by folders train/, valid/ and test/), "
        "or remove one of each pair.",
    )


def diagnose_split_gap(
    valid_accuracy: float,
    valid_pictures: int,
    test_accuracy: float,
    seed: int,
    split_seed: int | Literal["auto"] = "auto",
    is_drawn: bool = True,
) -> Verdict | None:
    """A test accuracy further above that on the `valid_pictures` than chance explains. `is_drawn` says whether the
    split follows from `seed`, or `split_seed`, and was not given."""
    gap = test_accuracy - valid_accuracy
    error = math.sqrt(max(valid_accuracy * (1 - valid_accuracy), 1 / valid_pictures) / valid_pictures)
    if gap <= max(SUSPICIOUS_GAP, SUSPICIOUS_ERRORS * error):
        return None
    anew = ", or split anew with another seed" if is_drawn else ""
    new_split = {"seed": seed + 1} if split_seed == "auto" else {"data.split_seed": split_seed + 1}
    return Verdict(
        "test easier than validation",
        f"Test accuracy {test_accuracy:.4f} is far above validation accuracy {valid_accuracy:.4f} ({gap / error:.1f} "
        f"standard errors on {valid_pictures} validation pictures). Test pictures may have leaked into training, or "
        f"the splits differ in kind; look at near_duplicates.csv{anew}.",
        new_split if is_drawn else {},
    )


def diagnose_size(
    training_counts: pd.Series,
    split: str,
    pictures: int,
    interval: tuple[float, float],
    test_fraction: float,
    is_drawn: bool = True,
) -> Verdict | None:
    """Too few pictures: to learn a class from, or in the `split` evaluated, whose accuracy has this wide `interval`.
    `is_drawn` says whether that split follows from the recipe's fraction, and was not given."""
    rare = training_counts[training_counts < FEWEST_TO_TRAIN].sort_values()
    low, high = interval
    is_wide = high - low > WIDEST_INTERVAL
    if rare.empty and not is_wide:
        return None
    words = []
    if len(rare):
        some = ", ".join(f"{label} {count}" for label, count in list(rare.items())[:5])
        more = f" and {len(rare) - 5} more classes" if len(rare) > 5 else ""
        words.append(f"Fewer than {FEWEST_TO_TRAIN} training pictures: {some}{more}. Add pictures of them.")
    if is_wide:
        words.append(
            f"With {pictures} {split} pictures the accuracy is known no better than {low:.1%} to {high:.1%}: smaller "
            f"differences mean nothing. Add pictures"
            f"{f', or hold out more of them (data.{split}_fraction)' if is_drawn else f' to the {split} split'}."
        )
    # Held-out pictures are taken from training, which has none to spare where a class is rare.
    more_held_out = (
        {"data.test_fraction": 0.4} if is_drawn and is_wide and rare.empty and 0 < test_fraction < 0.4 else {}
    )
    return Verdict("too few pictures", " ".join(words), more_held_out if split == "test" else {})


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 100 else "over 100 times"


def diagnose_rates(epochs: pd.DataFrame) -> list[Verdict]:
    """A verdict for each training run whose rate was too high or too low; none for the others.

    `epochs` is a table of the epochs of several runs, with the keys of their rates; those on stored activations are
    diagnosed by themselves. An annealed rate ends near zero: a loss that still falls there as fast as before means that
    all of the cycle was too low.
    """
    found = []
    for _, run in epochs.groupby(["run_id", "phase"], sort=False):
        stage, rate, key = str(run["stage"].iloc[0]), float(run["rate"].iloc[0]), str(run["rate_key"].iloc[0])
        train, valid = run["train_loss"].tolist(), run["valid_loss"].tolist()
        if _is_too_high(train, valid):
            found.append(
                Verdict(
                    "too high a rate",
                    f"The rate of {stage}, {rate:.2g} at its top, was too high: by epoch the training loss went "
                    f"{_format_losses(train)} and the validation loss {_format_losses(valid)}. Try a lower rate.",
                    {key: _round(rate / TIMES_LOWER)},
                )
            )
        elif _is_too_low(train, valid):
            found.append(
                Verdict(
                    "too low a rate",
                    f"The rate of {stage}, {rate:.2g} at its top, was too low, or the stage too short: the training "
                    f"loss still fell as fast at the end as before ({_format_losses(train)}), at a validation loss of "
                    f"{valid[-1]:.3f}. Try a higher rate, or more epochs.",
                    {key: _round(rate * TIMES_HIGHER)},
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


def _format_losses(losses: list[float]) -> str:
    shown = losses if len(losses) <= 6 else [*losses[:2], *losses[-4:]]
    words = [f"{loss:.3f}" for loss in shown]
    if len(losses) > 6:
        words.insert(2, "…")
    return " → ".join(words)


def _round(rate: float) -> float:
    return float(f"{rate:.1e}")
