"""predict: a logged or registered model over all pictures of a folder, to a CSV or Parquet table."""

from pathlib import Path

from pipeline import tracking
from pipeline.evaluation.folder_predictions import count_metrics, label_counts, predict_pictures
from pipeline.models.classifier import load_classifier
from pipeline.reports.page import markdown_table
from pipeline.system.console import say, table
from pipeline.system.device import choose_device
from pipeline.system.tables import write_table


def run(model: str, data: tuple[Path, list[Path]], output: Path, batch_size: int, device: str) -> None:
    """Predict every picture of `data`, a folder and the pictures in it; the run keeps the table, and how many pictures
    got each label."""
    root, pictures = data
    tracking.use_experiment(root.resolve().name)
    params = {"model": model, "data": str(root), "output": str(output), "batch_size": batch_size, "device": device}
    with tracking.open_run("predict", {tracking.STAGE: "predict", tracking.MODEL: model}, params) as run_id:
        classifier = load_classifier(tracking.model_checkpoint(model), choose_device(device))
        predictions = predict_pictures(classifier, root, pictures, batch_size)
        write_table(predictions, output)
        tracking.log_file(run_id, output)
        counts = label_counts(predictions)
        tracking.log_metrics(run_id, count_metrics(counts), step=0)
        tracking.describe_run(run_id, f"{model} over {root.resolve()}\n\n{markdown_table(counts)}")
        rows = [(label, f"{count:,}") for label, count in counts.to_numpy()]
        table("Pictures by predicted label", ("label", "pictures"), rows)
        say(f"{len(predictions):,} rows in {output.resolve()} (run {run_id})")
