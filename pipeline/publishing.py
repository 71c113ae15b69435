"""From a checkpoint that was judged to a model that serves: logged with its card, registered, compared."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from PIL import Image

from pipeline.classifier import TOP_K, load_classifier, save_classifier
from pipeline.console import say
from pipeline.decode import Pixels
from pipeline.manifest import Manifest
from pipeline.model_card import model_card
from pipeline.pins import SERVED_MODEL, pinned

CHECKED_PICTURES = 64
DIGEST = 16
BUILT = ("backbone", "hidden", "dropout", "image_px", "fit", "epochs", "steps")


def publish(
    run_id: str,
    checkpoint: Path,
    manifest: Manifest,
    pixels: Pixels,
    temperature: float,
    split: str,
    metrics: Mapping[str, float],
    by_class: pd.DataFrame,
    verdict: str,
    settings: Mapping[str, object],
    register_as: str,
    champion_by: str,
    onnx: bool,
) -> None:
    """Log the model in the open run, with its card and as ONNX if asked for; register it unless `register_as` is
    empty, and let it be champion where its `champion_by` on `split` beats the standing one's.

    `pixels` are the manifest's pictures at the checkpoint's size; `metrics` and `by_class` are what was found on the
    `split` that the model was judged on; `settings` is the flat recipe.
    """
    from pipeline import tracking

    dataset = tracking.log_dataset(manifest.name, manifest.root, manifest.digest, split)
    name = registered_name(register_as, manifest.name)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_classifier(checkpoint, temperature, folder / "checkpoint")
        classifier = load_classifier(folder / "checkpoint", torch.device("cpu"))
        metrics = {**metrics, "calibration/temperature": temperature}
        if onnx:
            from pipeline.onnx_export import export_onnx

            checked = [pixels[row] for row in manifest.rows("valid")[:CHECKED_PICTURES]]
            metrics["onnx/max_difference"] = export_onnx(classifier, checked, folder / "onnx")
            tracking.log_folder(run_id, folder / "onnx", "onnx")
        built = {key: value for key, value in asdict(classifier.checkpoint).items() if key in BUILT}
        counts = pd.crosstab(manifest.table["label"], manifest.table["split"]).rename_axis(None, axis=1)
        card = model_card(
            name or manifest.name, counts.reset_index(names="class"), split, by_class, metrics, verdict, built,
            settings, run_id,
        )  # fmt: skip
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        tracking.log_text(run_id, card, "model_card.md")
        model_uri = tracking.log_classifier(
            SERVED_MODEL,
            folder / "checkpoint",
            folder / "model_card.md",
            pinned(),
            manifest.classes,
            TOP_K,
            _example(pixels[manifest.rows("train")[0]]),
            metrics,
            classifier.checkpoint.steps,
            dataset,
        )
    if name:
        version = tracking.register(model_uri, name, card)
        metric = f"{split}/{champion_by}"
        outcome = tracking.crown(name, version, metric, metrics[metric], judged_content(manifest, split))
        say(f"  {outcome}")
        tracking.set_tags(run_id, {tracking.MODEL: f"models:/{name}/{version}", tracking.CHAMPION: outcome})


def registered_name(register_as: str, data: str) -> str:
    """The name in the model registry, which takes no "/" and no ":"."""
    return "thaw-" + re.sub(r"[^\w.-]+", "-", data) if register_as == "auto" else register_as


def judged_content(manifest: Manifest, split: str) -> str:
    """A hash of the pictures' contents and labels in `split`; their order and names do not matter."""
    pictures = manifest.table.loc[manifest.table["split"] == split, ["hash", "label"]]
    return hashlib.sha256(json.dumps(sorted(pictures.to_numpy().tolist())).encode()).hexdigest()[:DIGEST]


def _example(square: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(square.squeeze()).save(file, "JPEG", quality=85)
    return file.getvalue()
