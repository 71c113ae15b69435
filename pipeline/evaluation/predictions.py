"""The predictions of a network, and the tables that are read from them, each computed once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation.calibration import apply_temperature, reliability
from pipeline.evaluation.metrics import (
    POINT_COLUMNS,
    ClassCurves,
    Probabilities,
    class_curves,
    class_metrics,
    confusion,
    most_confused,
    operating_points,
    probabilities_of,
    targets_of,
)


@dataclass(frozen=True)
class Predictions:
    """The predictions `table` of all splits. The model is evaluated on one, `split`: test, or valid where there is no
    test split; all further tables are of it. `temperature` was fitted on the validation split, or is 1
    where `uncalibrated` says why; `positive` is the class that operating points are listed for, if any."""

    split: str
    classes: list[str]
    table: pd.DataFrame
    temperature: float
    positive: str | None
    uncalibrated: str = ""

    def of(self, split: str) -> pd.DataFrame:
        """The rows of one split."""
        return self.table[self.table["split"] == split]

    @cached_property
    def evaluated(self) -> pd.DataFrame:
        """The rows of the split that the model is evaluated on."""
        return self.of(self.split)

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """The true class of each picture, as an index."""
        return targets_of(self.evaluated, self.classes)

    @cached_property
    def probabilities(self) -> Probabilities:
        """The class probabilities (pictures, classes)."""
        return probabilities_of(self.evaluated, self.classes)

    @cached_property
    def calibrated(self) -> Probabilities:
        """The class probabilities after temperature scaling, as the model is served."""
        return apply_temperature(self.probabilities, self.temperature)

    @cached_property
    def by_class(self) -> pd.DataFrame:
        """`class_metrics`."""
        return class_metrics(self.evaluated, self.classes)

    @cached_property
    def confusion(self) -> pd.DataFrame:
        """Counts, with true labels as rows and predicted ones as columns."""
        return confusion(self.evaluated, self.classes)

    @cached_property
    def confused_pairs(self) -> pd.DataFrame:
        """`most_confused` of the confusion matrix."""
        return most_confused(self.confusion)

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """Confidence and accuracy by bin, before temperature scaling."""
        return reliability(self.probabilities, self.targets)

    @cached_property
    def calibrated_reliability(self) -> pd.DataFrame:
        """Confidence and accuracy by bin, after temperature scaling."""
        return reliability(self.calibrated, self.targets)

    @cached_property
    def class_curves(self) -> list[ClassCurves]:
        """ROC and precision-recall curves of each class."""
        return class_curves(self.targets, self.probabilities, self.classes)

    @cached_property
    def operating_points(self) -> pd.DataFrame:
        """Those of the positive class, by its calibrated probability; no row where there is no positive class."""
        if self.positive is None:
            return pd.DataFrame(columns=list(POINT_COLUMNS))
        is_positive = (self.evaluated["label"] == self.positive).to_numpy()
        return operating_points(is_positive, self.calibrated[:, self.classes.index(self.positive)])
