"""From an evaluated checkpoint to a model that serves: logged with its card, registered, promoted if it is better."""

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from pipeline import tracking
from pipeline.data.decode import Pixels
from pipeline.data.manifest import Manifest, class_counts
from pipeline.evaluation.evaluation import Evaluation
from pipeline.models.classifier import TOP_K, load_classifier, save_classifier
from pipeline.models.engine.onnx_file import MODEL, export_onnx
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.reports.model_card import model_card
from pipeline.runs.fingerprint import PROJECT
from pipeline.runs.served_code import copy_served_code
from pipeline.system.console import say, warn

SERVED_MODEL = PROJECT / "pipeline" / "serving.py"
SERVING = (
    "mlflow", "filelock", "numpy", "onnxruntime", "pandas", "pillow", "rich", "safetensors", "timm", "torch",
    "torchvision",
)  # fmt: skip
CHECKED_PICTURES = 64
# Between the probabilities of the ONNX file and the network's, for the served model to answer from the file on a CPU.
MOST_DIFFERENCE = 1e-3
DIGEST = 16
SAMPLE = 32
BUILT = ("backbone", "hidden", "dropout", "image_px", "fit", "ranges", "epochs", "steps", "kept_epochs")


def publish(
    run_id: str, checkpoint: Path, manifest: Manifest, pixels: Pixels, evaluation: Evaluation, recipe: Recipe
) -> None:
    """Log the model in the open run, with its card, and as ONNX with `evaluate.onnx`; register it unless
    `evaluate.register_as` is empty, and make it the champion if its `evaluate.champion_by` beats the standing one's.

    `pixels` are the manifest's pictures at the size of the network in the folder `checkpoint`.
    """
    settings, split = recipe.evaluate, evaluation.split
    dataset = tracking.log_dataset(manifest.name, manifest.source, manifest.digest, split)
    pictures = picture_set(manifest)
    name, refusal = _free_name(settings.register_as, manifest.name, pictures)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_classifier(checkpoint, evaluation.predictions.temperature, folder / "checkpoint", recipe.data.extensions)
        classifier = load_classifier(folder / "checkpoint", torch.device("cpu"))
        metrics = dict(evaluation.metrics)
        if settings.onnx:
            checked = [pixels[row] for row in manifest.rows("valid")[:CHECKED_PICTURES]]
            metrics["onnx_max_difference"] = export_onnx(classifier, checked, folder / "onnx")
            tracking.log_folder(run_id, folder / "onnx", "onnx")
            if metrics["onnx_max_difference"] <= MOST_DIFFERENCE:
                shutil.copy(folder / "onnx" / MODEL, folder / "checkpoint")
        built = {
            key: value for key, value in asdict(classifier.checkpoint).items() if key in BUILT and value not in ({}, [])
        }
        by_class, flat = class_counts(manifest).reset_index(names="class"), training_settings(recipe)
        card = model_card(name or manifest.name, by_class, evaluation, metrics, built, flat, run_id)
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        tracking.log_text(run_id, card, "model_card.md")
        model_uri = tracking.log_classifier(
            tracking.ModelFiles(
                copy_served_code(SERVED_MODEL, folder), folder / "checkpoint", folder / "model_card.md", pinned()
            ),
            manifest.classes,
            TOP_K,
            _example(pixels[manifest.rows("train")[0]]),
            metrics,
            classifier.checkpoint.steps,
            dataset,
        )
    if not name:
        return
    try:
        if refusal is not None:
            raise refusal
        version = tracking.register(model_uri, name, card, pictures.tags)
    except tracking.RegistryRefusal as error:
        outcome = (
            f"{error}; the model is logged as {model_uri}, and python -c 'import mlflow; "
            f'mlflow.register_model("{model_uri}", "{name}")\' registers it once that is mended, or under another name.'
        )
        warn(outcome)
        tracking.set_tags(run_id, {tracking.CHAMPION: outcome})
        return
    metric = f"{split}/{settings.champion_by}"
    outcome = tracking.promote_if_better(name, version, metric, metrics[metric], evaluated_content(manifest, split))
    say(f"  {outcome}")
    tracking.set_tags(run_id, {tracking.MODEL: f"models:/{name}/{version}", tracking.CHAMPION: outcome})


def registered_name(register_as: str, data: str) -> str:
    """The name in the model registry."""
    return tracking.named_after(data) if register_as == "auto" else register_as


def _free_name(
    register_as: str, data: str, pictures: tracking.PictureSet
) -> tuple[str, tracking.RegistryRefusal | None]:
    """The name in the model registry, another one if models of that name are of other pictures and the user did not
    choose it; and why that cannot be told, if so."""
    name = registered_name(register_as, data)
    if register_as != "auto":
        return name, None
    try:
        free = tracking.name_in_registry(name, pictures)
    except tracking.RegistryRefusal as refusal:
        return name, refusal
    if free != name:
        say(
            f"  The models {name} in the registry are of other pictures; this one goes to {free}, unless "
            f"evaluate.register_as names {name}."
        )
    return free, None


def picture_set(manifest: Manifest) -> tracking.PictureSet:
    """What tells the manifest's pictures from other sets, whatever their order, names and splits."""
    rows = manifest.table[["hash", "label"]].to_numpy().tolist()
    hashes = sorted(hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows)
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()[:DIGEST]
    return tracking.PictureSet(digest, tuple(one[:DIGEST] for one in hashes[:SAMPLE]), manifest.source)


def evaluated_content(manifest: Manifest, split: str) -> str:
    """A hash of the pictures' contents and labels in `split`; their order and names do not matter."""
    pictures = manifest.table.loc[manifest.table["split"] == split, ["hash", "label"]]
    return hashlib.sha256(json.dumps(sorted(pictures.to_numpy().tolist())).encode()).hexdigest()[:DIGEST]


def _example(square: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(square.squeeze()).save(file, "JPEG", quality=85)
    return file.getvalue()


def pinned(names: Sequence[str] = SERVING) -> list[str]:
    """The lines of requirements.txt, such as `torch==2.14.1`, for these packages."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").split()
    by_name = {line.split("==")[0]: line for line in lines}
    return [by_name[name] for name in names]
