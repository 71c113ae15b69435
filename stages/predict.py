"""predict: a logged or registered model over all pictures of a folder, to a CSV or Parquet table."""

from pipeline.command import Option, main_without_recipe

NAME = "predict"
OPTIONS = (
    Option("model", "the address of a model such as models:/thaw-elpv@champion"),
    Option("data", "a folder of pictures, nested as you like"),
    Option("output", "the file to write, .csv or .parquet", "predictions.csv"),
    Option("batch_size", "how many pictures go through the network at a time", "32"),
    Option("device", "auto, cpu or cuda", "auto"),
)


def run(model: str, data: str, output: str, batch_size: str, device: str) -> None:
    """Predict every picture; the run keeps the table, and how many pictures got each label."""
    from pipeline.errors import UserError
    from pipeline.picture_folder import check_output, list_pictures
    from pipeline.recipe import Data

    if not batch_size.isdigit() or int(batch_size) == 0:
        raise UserError(f"batch_size is {batch_size}; give a whole number from 1 up.")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {device}; give auto, cpu or cuda.")
    path = check_output(output)
    root, pictures = list_pictures(data, Data().extensions)

    from pipeline import tracking
    from pipeline.classifier import load_classifier
    from pipeline.console import say, table
    from pipeline.device import choose_device
    from pipeline.folder_predictions import count_metrics, label_counts, predict_pictures, write_table
    from pipeline.report import markdown_table

    params = {"model": model, "data": data, "output": output, "batch_size": batch_size, "device": device}
    with tracking.open_run(NAME, {tracking.STAGE: NAME, tracking.MODEL: model}, params) as run_id:
        classifier = load_classifier(tracking.model_checkpoint(model), choose_device(device))
        predictions = predict_pictures(classifier, root, pictures, int(batch_size))
        write_table(predictions, path)
        tracking.log_file(run_id, path)
        counts = label_counts(predictions)
        tracking.log_metrics(run_id, count_metrics(counts), step=0)
        tracking.describe_run(run_id, f"{model} over {root.resolve()}\n\n{markdown_table(counts)}")
        table(
            "What was predicted", ("label", "pictures"), [(label, f"{count:,}") for label, count in counts.to_numpy()]
        )
        say(f"{len(predictions):,} rows in {path.resolve()} (run {run_id})")


if __name__ == "__main__":
    main_without_recipe(NAME, __doc__, OPTIONS, run)
