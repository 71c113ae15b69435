"""The served model: raw picture bytes in, label and probabilities out.

MLflow runs this file to load the model; weights come from safetensors and JSON, so nothing is unpickled.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

from pipeline.checkpoint import load_checkpoint
from pipeline.decode import decode_square
from pipeline.predict import predict


class PictureClassifier(PythonModel):
    """Takes a table with a column `image` of encoded pictures (JPEG, PNG, …), as bytes or base64 text, and gives
    `label`, `confidence` and a column `probability/<class>` for each class."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the checkpoint that was logged with the model."""
        self.network, self.checkpoint = load_checkpoint(Path(context.artifacts["checkpoint"]))
        self.network.eval()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each picture; ValueError, naming the row, for one that is no picture."""
        if model_input.empty:
            raise ValueError("The table has no row; give one or more pictures in the column image.")
        squares = [self._decode(row, content) for row, content in enumerate(model_input["image"])]
        rows = np.arange(len(squares), dtype=np.int64)
        probabilities = predict(self.network, np.stack(squares), rows, 32, torch.device("cpu"))
        classes = np.array(self.checkpoint.classes)
        table = pd.DataFrame({"label": classes[probabilities.argmax(1)], "confidence": probabilities.max(1)})
        for index, label in enumerate(classes):
            table[f"probability/{label}"] = probabilities[:, index]
        return table

    def _decode(self, row: int, content: bytes | str) -> Any:
        try:
            raw = base64.b64decode("".join(content.split()), validate=True) if isinstance(content, str) else content
            return decode_square(raw, self.checkpoint.image_px, self.checkpoint.fit, self.checkpoint.grey)
        except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
            raise ValueError(f"Row {row} of column image is no picture that can be decoded: {error}") from None


mlflow.models.set_model(PictureClassifier())
