"""From an evaluated checkpoint to a model that serves: logged with its card, registered, promoted if it is better."""

import hashlib
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from pipeline import tracking
from pipeline.data.decode import Pixels
from pipeline.data.manifest import Manifest, class_counts
from pipeline.evaluation.evaluation import Evaluation
from pipeline.models.classifier import TOP_K, Classifier, Tta, load_classifier, save_classifier
from pipeline.models.engine.onnx_file import MODEL, describe_ensemble, export_onnx
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.reports.model_card import model_card
from pipeline.runs.ensemble.networks import EvaluatedNetwork
from pipeline.runs.fingerprint import PROJECT
from pipeline.runs.served_code import copy_served_code, pinned
from pipeline.system.console import say, warn

SERVED_MODEL = PROJECT / "pipeline" / "serving.py"
CHECKED_PICTURES = 64
MEASURED_ANSWERS = 5
# Between the probabilities of the ONNX file and the network's, for the served model to answer from the file on a CPU.
MOST_DIFFERENCE = 1e-3
DIGEST = 16
SAMPLE = 32
BUILT = ("backbone", "hidden", "dropout", "image_px", "fit", "ranges", "epochs", "steps", "kept_epochs")


def publish(
    run_id: str, networks: Sequence[EvaluatedNetwork], manifest: Manifest, evaluation: Evaluation, recipe: Recipe
) -> None:
    """Log the model of these `networks` in the open run, with its card, and as ONNX with `evaluate.onnx`; register it
    unless `evaluate.register_as` is empty, and make it the champion if its `evaluate.champion_by` beats the standing
    one's."""
    settings, split = recipe.evaluate, evaluation.split
    dataset = tracking.log_dataset(manifest.name, manifest.source, manifest.digest, split)
    pictures = picture_set(manifest)
    name, refusal = _free_name(settings.register_as, manifest.name, pictures)
    pixels = [one.pixels for one in networks]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        temperature = evaluation.predictions.temperature
        tta = Tta(recipe.augment.flip, recipe.augment.crop, settings.tta_views)
        checkpoints = [one.folder for one in networks]
        members = save_classifier(checkpoints, temperature, folder / "checkpoint", recipe.data.extensions, tta)
        classifier = load_classifier(folder / "checkpoint", torch.device("cpu"))
        metrics = dict(evaluation.metrics)
        if settings.onnx:
            checked = manifest.rows("valid")[:CHECKED_PICTURES]
            squares = [[one[row] for row in checked] for one in pixels]
            metrics["onnx_max_difference"] = _export(classifier, squares, members, folder / "onnx")
            tracking.log_folder(run_id, folder / "onnx", "onnx")
        served = measure_served(folder / "checkpoint", [one[manifest.rows("valid")[0]] for one in pixels])
        metrics |= served
        if len(networks) > 1:
            say(f"  {describe_served(len(networks), served)}")
        by_class, flat = class_counts(manifest).reset_index(names="class"), training_settings(recipe)
        card = model_card(name or manifest.name, by_class, evaluation, metrics, _built(classifier), flat, run_id)
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        tracking.log_text(run_id, card, "model_card.md")
        model_uri = tracking.log_classifier(
            tracking.ModelFiles(
                copy_served_code(SERVED_MODEL, folder), folder / "checkpoint", folder / "model_card.md", pinned()
            ),
            manifest.classes,
            TOP_K,
            _example(pixels[0][manifest.rows("train")[0]]),
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


def _export(
    classifier: Classifier, squares: Sequence[Sequence[Pixels]], members: Sequence[Path], folder: Path
) -> float:
    """Write each member as ONNX into `folder`, or a folder of its own there, and into its folder of `members`, if the
    file agrees with the network; gives the largest difference on `squares`, of each member's size."""
    differences = []
    is_one = len(members) == 1
    for network, own, member in zip(classifier.members, squares, members, strict=True):
        place = folder if is_one else folder / member.name
        differences.append(export_onnx(network, classifier.temperature if is_one else 1.0, own, place))
        if differences[-1] <= MOST_DIFFERENCE:
            shutil.copy(place / MODEL, member)
    if not is_one:
        describe_ensemble(folder, [member.name for member in members], classifier.temperature)
    return max(differences)


def measure_served(folder: Path, squares: Sequence[Pixels]) -> dict[str, float]:
    """How large the classifier in `folder` is, and how long it takes for a picture on this machine's CPU, given as the
    square of each member: the median of several answers, without decoding."""
    classifier = load_classifier(folder, torch.device("cpu"))
    by_size = {square.shape[0]: square for square in squares}
    picture = tuple(by_size[size] for size in classifier.sizes_px)
    seconds = []
    for _ in range(MEASURED_ANSWERS + 1):
        began = time.perf_counter()
        classifier.probabilities([picture], 1)
        seconds.append(time.perf_counter() - began)
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return {"served_megabytes": megabytes, "served_milliseconds_per_picture": 1000 * median(seconds[1:])}


def describe_served(networks: int, served: Mapping[str, float]) -> str:
    """Size and speed of a model of several networks, in a sentence."""
    return (
        f"The model holds {networks} networks in {served['served_megabytes']:.0f} MB, and takes "
        f"{served['served_milliseconds_per_picture']:.0f} ms for a picture on this machine's CPU."
    )


def _built(classifier: Classifier) -> dict[str, object]:
    """How the first network is built and trained, and what of that differs among several."""
    facts = [asdict(member.checkpoint) for member in classifier.members]
    built = {key: facts[0][key] for key in BUILT if facts[0][key] not in ({}, [])}
    for key in built:
        different = list(dict.fromkeys(str(one[key]) for one in facts))
        built[key] = built[key] if len(different) == 1 else " or ".join(different)
    return built if len(facts) == 1 else {"networks": len(facts), **built}


def _free_name(
    register_as: str, data: str, pictures: tracking.PictureSet
) -> tuple[str, tracking.RegistryRefusal | None]:
    """The name in the model registry, another one if models of that name are of other pictures and the user did not
    choose it; and why that cannot be told, if so."""
    name = tracking.registered_name(register_as, data)
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
