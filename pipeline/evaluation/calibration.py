"""Calibration: how far confidence and accuracy lie apart, and one temperature that corrects it, if it surely does.

Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F

Probabilities = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int64]
BINS = 15
# The best temperature is 0 where every picture is right, and infinite where all are wrong.
LOWEST, HIGHEST = 0.1, 10.0
SMALLEST = np.finfo(np.float64).tiny
# With fewer right or wrong answers a fitted temperature makes held-out probabilities worse about as often as better.
FEWEST_OF_EACH = 10
FOLDS = 5


def choose_temperature(probabilities: Probabilities, targets: Targets) -> tuple[float, str]:
    """The temperature of `fit_temperature`, and ""; or 1, and the reason in a sentence, where the pictures are too few
    to tell, or where it does not help.

    It has to lower the cross-entropy of pictures that it was not fitted on, by cross-validation, by more than the
    standard error of that.
    """
    wrong = int((probabilities.argmax(1) != targets).sum())
    right = len(targets) - wrong
    if min(wrong, right) < FEWEST_OF_EACH:
        return 1.0, (
            f"Probabilities are not calibrated: of {len(targets)} validation pictures {wrong} are answered wrong, and "
            f"a temperature takes {FEWEST_OF_EACH} wrong and {FEWEST_OF_EACH} right answers to be fitted."
        )
    gains = _held_out_gains(probabilities, targets)
    gain, error = float(gains.mean()), float(gains.std(ddof=1)) / len(gains) ** 0.5
    if gain <= error:
        return 1.0, (
            f"Probabilities are not calibrated: a temperature fitted on parts of the {len(targets)} validation "
            f"pictures changes the log-loss of the others by {-gain:+.4f} (standard error {error:.4f}), which is no "
            "sure gain."
        )
    return fit_temperature(probabilities, targets), ""


def _held_out_gains(probabilities: Probabilities, targets: Targets) -> npt.NDArray[np.float64]:
    """By how much each picture's cross-entropy falls with a temperature that was fitted on the other folds."""
    folds = np.arange(len(targets)) % FOLDS  # tables are sorted by class and path, so that each fold has all classes
    gains = np.empty(len(targets))
    for fold in range(FOLDS):
        held_out = folds == fold
        temperature = fit_temperature(probabilities[~held_out], targets[~held_out])
        own, wanted = probabilities[held_out], targets[held_out]
        gains[held_out] = _losses(own, wanted) - _losses(apply_temperature(own, temperature), wanted)
    return gains


def _losses(probabilities: Probabilities, targets: Targets) -> Probabilities:
    losses: Probabilities = -_logits(probabilities)[np.arange(len(targets)), targets]
    return losses


def fit_temperature(probabilities: Probabilities, targets: Targets) -> float:
    """The temperature, from 0.1 to 10, with the lowest cross-entropy on `probabilities` (pictures, classes).

    Above 1 the model is over-confident, below 1 under-confident. Fit it on validation pictures alone. Without pictures
    it is 1, which changes nothing.
    """
    if len(targets) == 0:
        return 1.0
    logits, wanted = torch.from_numpy(_logits(probabilities)), torch.from_numpy(targets)
    # The cross-entropy is convex in the inverse of the temperature, not in the temperature.
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * inverse, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return 1 / min(max(float(inverse.detach()), 1 / HIGHEST), 1 / LOWEST)


def apply_temperature(probabilities: Probabilities, temperature: float) -> Probabilities:
    """softmax(log p / temperature), the same as scaling the logits; the order of the classes stays."""
    scaled = _logits(probabilities) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    calibrated: Probabilities = raised / raised.sum(axis=1, keepdims=True)
    return calibrated


def reliability(probabilities: Probabilities, targets: Targets) -> pd.DataFrame:
    """A row for each of 15 equal bins of the highest probability: `low`, `high`, the mean `confidence` and the
    `accuracy` of the pictures in it (NaN where there is none), and their number `pictures`."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == targets
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    by_bin = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(bins)
    table = by_bin.mean().reindex(range(BINS))
    table["pictures"] = by_bin.size().reindex(range(BINS), fill_value=0)
    table.insert(0, "low", edges[:-1])
    table.insert(1, "high", edges[1:])
    return table


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """ECE: how far accuracy and confidence lie apart, over the bins of `reliability`, weighted by their pictures."""
    apart = (bins["accuracy"] - bins["confidence"]).abs()
    return float((apart * bins["pictures"]).sum() / bins["pictures"].sum())


def _logits(probabilities: Probabilities) -> Probabilities:
    logits: Probabilities = np.log(np.maximum(probabilities, SMALLEST))
    return logits
