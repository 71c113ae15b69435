"""predict: a logged or registered model over all pictures of a folder, to a CSV or Parquet table."""

from pathlib import Path

import pandas as pd

from pipeline import tracking
from pipeline.data.readers.folder import list_pictures
from pipeline.evaluation.folder_predictions import count_metrics, label_counts, predict_together
from pipeline.models.classifier import load_classifier
from pipeline.recipe.fields import PICTURE_ENDINGS
from pipeline.reports.page import markdown_table
from pipeline.system.console import say, table
from pipeline.system.device import choose_device
from pipeline.system.disk import written_whole
from pipeline.system.errors import UserError
from pipeline.system.tables import write_table


def run(model: str, data: Path, output: Path, batch_size: int, device: str, tta: bool) -> None:
    """Predict every picture in the folder `data`; the run keeps the table, and how many pictures got each label and
    which metric counts it. With `tta` answers are the mean over the views that the model was evaluated with.

    UserError at the end if `output` cannot be written; the run has the table then too.
    """
    tracking.use_experiment(data.name)
    params: dict[str, object] = {"model": model, "data": str(data), "output": str(output)}
    params |= {"batch_size": batch_size, "device": device, "tta": tta}
    with tracking.open_run("predict", {tracking.STAGE: "predict", tracking.MODEL: model}, params) as run_id:
        folder_of_model = tracking.find_model(model).checkpoint
        classifier = load_classifier(folder_of_model, choose_device(device), one_by_one=False)
        root, pictures = list_pictures(str(data), classifier.extensions or PICTURE_ENDINGS)
        predictions = predict_together(folder_of_model, classifier, root, pictures, batch_size, tta)
        failed = write_output(predictions, output)
        counts = label_counts(predictions)
        metrics = count_metrics(counts, classifier.checkpoint.classes)
        with tracking.new_files(run_id) as folder:
            write_table(predictions, folder / output.name)
            (folder / "labels").mkdir()
            write_table(counts.assign(metric=list(metrics)), folder / "labels" / "labels.csv")
        tracking.log_metrics(run_id, metrics, step=0)
        tracking.describe_run(run_id, f"{model} over {root}\n\n{markdown_table(counts)}")
        rows = [(label, f"{count:,}") for label, count in counts.to_numpy()]
        table("Pictures by predicted label", ("label", "pictures"), rows)
        if failed is not None:
            raise UserError(
                f"The table cannot be written to {output} ({failed.strerror or failed}); it is kept as {output.name} "
                f"among the files of run {run_id}: take it from there."
            )
        say(f"{len(predictions):,} rows in {output.resolve()} (run {run_id})")


def write_output(predictions: pd.DataFrame, output: Path) -> OSError | None:
    """Write the table to `output`, whole or not at all; the error, if it cannot be written."""
    try:
        with written_whole(output) as unfinished:
            write_table(predictions, unfinished)
    except OSError as error:
        return error
    return None
