"""Over-fitting told in words, from losses measured in the same way on both splits."""

import math
from dataclasses import dataclass

from pipeline.errors import UserError

# Below this difference in nats no ratio matters: both losses are small, or noise decides.
SMALLEST_GAP = 0.05
OVERFIT_RATIO = 1.5
STRONG_RATIO = 3.0
# A training loss above this share of the loss of always guessing at random says that little was learned.
UNDERFIT_SHARE = 0.8


@dataclass(frozen=True)
class Verdict:
    """`name` is good, over-fitting, strongly over-fitting or under-fitting; `words` say why, and what to try next."""

    name: str
    words: str


def diagnose(train_loss: float, valid_loss: float, chance_loss: float) -> Verdict:
    """The verdict on a model with these mean cross-entropies on plain, un-augmented pictures.

    `chance_loss` is the loss of guessing by the classes' shares. Training loss far below validation loss means
    over-fitting; a training loss near chance means under-fitting. UserError for losses that are no numbers.
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
        )
    if gap > SMALLEST_GAP and ratio > OVERFIT_RATIO:
        strongly = ratio > STRONG_RATIO
        return Verdict(
            "strongly over-fitting" if strongly else "over-fitting",
            f"The model {'strongly ' if strongly else ''}over-fits: {numbers}, {_times(ratio)} the training loss. "
            "Add pictures, vary them more (augment.*), raise weight_decay or head.dropout, or train shorter.",
        )
    return Verdict("good", f"No over-fitting to speak of: {numbers}.")


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 100 else "over 100 times"
