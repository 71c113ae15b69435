"""What an ensemble gains: how its networks validate by themselves, and how their mean does."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation.predict import losses

Probabilities = npt.NDArray[np.float64]
# Less than one picture in a million, by which two equal shares may differ.
ROUNDING = 1e-7


def accuracy_and_loss(probabilities: Probabilities, targets: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The share of pictures that are right, and the mean cross-entropy."""
    of_target = probabilities[np.arange(len(targets)), targets]
    return float((probabilities.argmax(1) == targets).mean()), float(losses(of_target).mean())


def ensemble_metrics(members: pd.DataFrame, accuracy: float) -> dict[str, float]:
    """How each of several `members` validates, by its number, and by how much the ensemble, whose validation accuracy
    this is, is better than they are on average, and than the best of them. Nothing of a single network."""
    if len(members) < 2:
        return {}
    metrics = {
        f"ensemble_valid_{name}_{number}": float(value)
        for name in ("accuracy", "loss")
        for number, value in enumerate(members[name], 1)
    }
    accuracies = members["accuracy"]
    gains = {"ensemble_valid_gain": accuracies.mean(), "ensemble_valid_gain_over_best": accuracies.max()}
    return {"ensemble_networks": len(members), **metrics} | {name: accuracy - one for name, one in gains.items()}


def describe_ensemble(members: pd.DataFrame, accuracy: float, loss: float) -> str:
    """Whether the ensemble, which validates with this accuracy and log-loss, is better than its members, in a sentence;
    empty for a single network."""
    if len(members) < 2:
        return ""
    accuracies, log_losses = members["accuracy"], members["loss"]
    best = members["network"].iloc[int(accuracies.argmax())]
    if accuracy > accuracies.max() + ROUNDING:
        verdict = "the ensemble is better than each of them"
    elif accuracy > accuracies.mean() + ROUNDING or loss < log_losses.min():
        verdict = f"the ensemble is better than they are on average, though {best} alone is right at least as often"
    else:
        verdict = f"the ensemble is no better: {best} alone does as well, and answers sooner"
    return (
        f"The probabilities of {len(members)} networks are averaged. On the validation pictures their mean has an "
        f"accuracy of {accuracy:.4f} and a log-loss of {loss:.4f}; by themselves they have {accuracies.min():.4f} to "
        f"{accuracies.max():.4f} (on average {accuracies.mean():.4f}) and {log_losses.min():.4f} to "
        f"{log_losses.max():.4f}: {verdict}."
    )
