"""The served model: pictures in, labels and probabilities out.

MLflow runs this file to load the model; weights come from safetensors and JSON, so nothing is unpickled.
"""

import os
from pathlib import Path
from typing import Any

# Before torch is loaded, as the commands do: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.data.picture_input import picture_bytes
from pipeline.models.classifier import TOP_K, Probabilities, Squares, answer_table, load_classifier
from pipeline.system.device import choose_device
from pipeline.system.parallel import in_parallel

BATCH_SIZE = 32


class PictureClassifier(PythonModel):
    """Takes a table with a column `image` of pictures (see `picture_input.picture_bytes`), and gives `label`,
    `confidence`, a column `probability/<class>` for each class, and the `top_k` likeliest classes as `top_labels`
    and `top_probabilities`; with the parameter `tta` by the mean over the views that it was evaluated with. A mistake
    in a request is raised as MLflow's INVALID_PARAMETER_VALUE, which its server answers with 400."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the networks from the checkpoints that were logged with the model, on the GPU if there is one."""
        self.classifier = load_classifier(Path(context.artifacts["checkpoint"]), choose_device("auto"))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each picture; MlflowException, naming the row, for one that is no picture."""
        if model_input.empty:
            raise _refusal("The table has no row; give one or more pictures in the column image.")
        top_k = int((params or {}).get("top_k", TOP_K))
        if top_k < 1:
            raise _refusal(f"top_k is {top_k}; give a whole number from 1 up.")
        with_tta = bool((params or {}).get("tta", False))
        rows = list(enumerate(model_input["image"]))
        probabilities = self.classifier.probabilities(
            in_parallel(self._decode, rows) if len(rows) > 1 else map(self._decode, rows), BATCH_SIZE, with_tta
        )
        classes = self.classifier.checkpoint.classes
        return pd.concat([answer_table(classes, probabilities), _top(classes, probabilities, top_k)], axis=1)

    def _decode(self, row_and_picture: tuple[int, Any]) -> Squares:
        row, picture = row_and_picture
        try:
            return self.classifier.decode(picture_bytes(picture))
        except Exception as error:  # each of Pillow's decoders has errors of its own
            raise _refusal(f"Row {row} of column image is no picture that can be decoded: {error}") from None


def _top(classes: list[str], probabilities: Probabilities, top_k: int) -> pd.DataFrame:
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return pd.DataFrame(
        {
            "top_labels": np.array(classes)[likeliest].tolist(),
            "top_probabilities": np.take_along_axis(probabilities, likeliest, axis=1).tolist(),
        }
    )


def _refusal(sentence: str) -> MlflowException:
    return MlflowException(sentence, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(PictureClassifier())
