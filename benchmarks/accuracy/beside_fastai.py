"""Thaw and fastai with the same pictures, network, weights, image size, batches and epochs, by seed.

fastai: `fine_tune(EPOCHS)`, one epoch of the head and EPOCHS of all layers. Thaw: one epoch of the head on stored
activations and EPOCHS of all layers, at the rates that its recipe takes by itself; and the same with as many epochs of
the head as its recipe has, which on stored activations take less time than one of fastai's.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.accuracy.sets import recipe_for
from benchmarks.accuracy.trainings import Ready, fine_tune, suggest_for_all, suggest_for_head, train_head
from benchmarks.side_by_side.fastai_side import learner
from benchmarks.side_by_side.work import Work

EPOCHS = 3


def compare_with_fastai(name: str, source: str, image_px: int, seeds: range) -> Iterator[dict[str, Any]]:
    """For each seed the accuracy of each on the test pictures, or, where there are none, on the validation pictures."""
    given = {"precompute.image_px": str(image_px), "fine_tune.cycle_len": str(EPOCHS), "data.soft_labels": "false"}
    ready = Ready.of(recipe_for(source, given=given))
    short = Ready(**{**vars(ready), "recipe": recipe_for(source, given=given | {"train_head.stored_epochs": "1"})})
    split = "test" if len(ready.manifest.rows("test")) else "valid"
    for seed in seeds:
        yield {
            "set": name,
            "image_px": image_px,
            "epochs": EPOCHS,
            "split": split,
            "seed": seed,
            "thaw": _thaw(short, split, seed),
            "thaw_stored_epochs": _thaw(ready, split, seed),
            "stored_epochs": ready.recipe.train_head.stored_epochs,
            "fastai": _fastai(ready, split, seed),
        }


def _thaw(ready: Ready, split: str, seed: int) -> float:
    network = ready.start(seed)
    train_head(ready, network, seed, suggest_for_head(ready, network, seed) or 1e-3)
    rate = ready.recipe.fine_tune.lr
    fine_tune(ready, network, seed, suggest_for_all(ready, network, seed) or 1e-4 if isinstance(rate, str) else rate)
    predicted, true = ready.predictions(network, split)
    return float((predicted == true).mean())


def _fastai(ready: Ready, split: str, seed: int) -> float:
    manifest, paths, labels = ready.manifest, ready.manifest.paths, ready.manifest.table["label"].tolist()
    train, valid, judged = (manifest.rows(name) for name in ("train", "valid", split))
    rows = [*train, *valid]
    label_of = {paths[row]: labels[row] for row in rows}
    work = Work(ready.checkpoint.backbone, ready.checkpoint.image_px)
    made = learner(label_of, list(range(len(train), len(rows))), work, seed)
    with made.no_bar(), made.no_logging():
        made.fine_tune(EPOCHS)
        found, _ = made.get_preds(dl=made.dls.test_dl([paths[row] for row in judged]))
    predicted = [made.dls.vocab[index] for index in found.argmax(1).tolist()]
    return sum(one == labels[row] for one, row in zip(predicted, judged, strict=True)) / len(judged)
