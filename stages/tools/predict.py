"""predict: a logged or registered model over all pictures of a folder or a table, to a CSV or Parquet table."""

from pathlib import Path

import pandas as pd

from pipeline import tracking
from pipeline.data.readers.sources import source_name
from pipeline.data.readers.unlabelled import list_unlabelled
from pipeline.data.remote.fetch import fetch_listing
from pipeline.evaluation.folder_predictions import count_metrics, label_counts, predict_together, with_addresses
from pipeline.models.classifier import load_classifier
from pipeline.recipe.fields import PICTURE_ENDINGS
from pipeline.recipe.picture_sections import Data
from pipeline.reports.page import markdown_table
from pipeline.system.console import say, table
from pipeline.system.device import choose_device
from pipeline.system.disk import written_whole
from pipeline.system.errors import UserError
from pipeline.system.tables import write_table


def run(model: str, data: str, output: Path, batch_size: int, device: str, tta: bool, max_download_gib: float) -> None:
    """Predict every picture of `data`, a folder or a table; the run keeps the table, and how many pictures got each
    label and which metric counts it. With `tta` answers are the mean over the views that the model was evaluated with.
    Pictures at addresses are fetched into the cache first.

    UserError at the end if `output` cannot be written; the run has the table then too.
    """
    tracking.use_experiment(source_name(data))
    params: dict[str, object] = {"model": model, "data": data, "output": str(output)}
    params |= {"batch_size": batch_size, "device": device, "tta": tta}
    with tracking.open_run("predict", {tracking.STAGE: "predict", tracking.MODEL: model}, params) as run_id:
        folder_of_model = tracking.find_model(model).checkpoint
        classifier = load_classifier(folder_of_model, choose_device(device), one_by_one=False)
        listing = list_unlabelled(data, classifier.extensions or PICTURE_ENDINGS)
        listing = fetch_listing(listing, max_download_gib, Data().recheck_hours)
        pictures = [listing.root / path for path in listing.paths]
        predictions = predict_together(folder_of_model, classifier, listing.root, pictures, batch_size, tta)
        predictions = with_addresses(predictions, listing)
        failed = write_output(predictions, output)
        counts = label_counts(predictions)
        metrics = count_metrics(counts, classifier.checkpoint.classes)
        with tracking.new_files(run_id) as folder:
            write_table(predictions, folder / output.name)
            (folder / "labels").mkdir()
            write_table(counts.assign(metric=list(metrics)), folder / "labels" / "labels.csv")
        tracking.log_metrics(run_id, metrics, step=0)
        tracking.describe_run(run_id, f"{model} over {data}\n\n{markdown_table(counts)}")
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
