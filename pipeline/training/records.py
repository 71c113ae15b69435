"""What is known of an epoch of training, and how the results of the weights that are kept are called; without torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: its number over all stages, its loss, and the rate of each layer group."""

    step: int
    loss: float
    rates: dict[str, float]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. `epoch` and `step` count over all stages, from 1. `train_loss` is the mean cross-entropy of its
    batches, without label smoothing and with equal weights for all pictures, as in validation; for mixed pictures and
    soft labels the shares of the classes are the target, below whose entropy it cannot fall."""

    epoch: int
    step: int
    cycle: int
    train_loss: float
    valid_loss: float
    valid_accuracy: float
    valid_macro_f1: float
    seconds: float
    images_per_second: float
    steps: list[StepRecord] = field(repr=False)

    @property
    def overfit_gap(self) -> float:
        """The validation loss minus the training loss."""
        return self.valid_loss - self.train_loss


def kept_name(name: str) -> str:
    """The metric of the weights that a stage keeps: `kept_valid_accuracy` for `valid/accuracy`, whose last point is of
    the last epoch."""
    return f"kept_{name.replace('/', '_')}"
