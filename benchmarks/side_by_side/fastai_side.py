"""fastai's side, as its documentation has it: pictures from files, `Resize`, `aug_transforms`, `vision_learner`; on a
GPU in bfloat16, as Thaw's."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.fp16 import to_bf16  # noqa: F401 — a method of a Learner
from fastai.callback.schedule import fine_tune, fit_one_cycle, lr_find  # noqa: F401 — methods of a Learner
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import Normalize
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from timm.models import get_pretrained_cfg

from benchmarks.side_by_side.sides import serve
from benchmarks.side_by_side.work import END_LR, SEED, START_LR, Work, pictures, recipe_split, validated
from pipeline.models.body import packaged_state
from pipeline.models.weights import PACKAGES, find_weights


def learner(label_of: Mapping[Path, str], valid: list[int], work: Work, seed: int = SEED) -> Learner:
    """A frozen learner on these files with the packaged ImageNet weights, or random ones where there is no package."""
    set_seed(seed)
    facts = get_pretrained_cfg(work.backbone)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_y=lambda path: label_of[path],
        splitter=IndexSplitter(valid),
        item_tfms=Resize(work.image_px),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(facts.mean, facts.std)],
    )
    # The finder saves weights below the path.
    data = block.dataloaders(list(label_of), path=Path(tempfile.gettempdir()) / "fastai", bs=work.batch_size)
    made = vision_learner(data, work.backbone, pretrained=False, metrics=accuracy)
    if work.backbone in PACKAGES:
        weights = packaged_state(work.backbone, find_weights(work.backbone, "auto", SEED))
        missing, _ = made.model[0].model.load_state_dict(weights, strict=False)
        assert not missing, missing
    made.freeze()
    return made.to_bf16() if torch.cuda.is_available() else made


def epoch(made: Learner) -> Callable[[], dict[str, float]]:
    """One epoch with validation."""

    def act() -> dict[str, float]:
        with made.no_bar(), made.no_logging():
            made.fit_one_cycle(1, 1e-3)
        return {}

    return act


def finder(made: Learner, iterations: int) -> Callable[[], dict[str, float]]:
    """A range test."""

    def act() -> dict[str, float]:
        with made.no_bar(), made.no_logging():
            made.lr_find(START_LR, END_LR, iterations, stop_div=False, show_plot=False)
        return {}

    return act


def of_pictures(train: int, valid: int, work: Work, *, is_frozen: bool) -> Learner:
    """A learner on so many of the packaged pictures."""
    label_of = pictures(train + valid)
    made = learner(label_of, list(range(train, train + valid)), work)
    if not is_frozen:
        made.unfreeze()
    return made


def head_epoch(work: Work) -> Callable[[], dict[str, float]]:
    """An epoch of the head: the body is frozen, and every picture goes through it."""
    return warmed(epoch(of_pictures(work.frozen, validated(work.frozen), work, is_frozen=True)))


def head_finder(work: Work) -> Callable[[], dict[str, float]]:
    """The range test of the head."""
    made = of_pictures(work.stored, validated(work.stored), work, is_frozen=True)
    return warmed(finder(made, work.iterations))


def unfrozen_epoch(work: Work) -> Callable[[], dict[str, float]]:
    """An epoch of all layers."""
    return warmed(epoch(of_pictures(work.unfrozen, validated(work.unfrozen), work, is_frozen=False)))


def unfrozen_finder(work: Work) -> Callable[[], dict[str, float]]:
    """The range test of all layers."""
    made = of_pictures(work.unfrozen, validated(work.unfrozen), work, is_frozen=False)
    return warmed(finder(made, work.iterations))


def tta(work: Work) -> Callable[[], dict[str, float]]:
    """Validation pictures as they are and in four augmented views."""
    made = of_pictures(work.batch_size, work.tta, work, is_frozen=True)

    def act() -> dict[str, float]:
        with made.no_bar(), made.no_logging():
            made.tta(n=4)
        return {}

    return warmed(act)


def warmed(act: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
    """`act`, which on a GPU has been done once before, so that no library has to start or to choose its kernels."""
    if torch.cuda.is_available():
        act()
    return act


def recipe(work: Work) -> Callable[[], dict[str, float]]:
    """`fine_tune`, from opening the pictures to the accuracy on the test pictures."""
    split = recipe_split(work)
    train, valid, test = (split[split["split"] == name] for name in ("train", "valid", "test"))

    def act() -> dict[str, float]:
        rows = pd.concat([train, valid])
        label_of = dict(zip(rows["file"], rows["label"], strict=True))
        made = learner(label_of, list(range(len(train), len(rows))), work)
        with made.no_bar(), made.no_logging():
            made.fine_tune(work.recipe_epochs)
            found, _ = made.get_preds(dl=made.dls.test_dl(list(test["file"])))
        predicted = [made.dls.vocab[index] for index in found.argmax(1).tolist()]
        return {"accuracy": float((test["label"] == predicted).mean())}

    return act


if __name__ == "__main__":
    serve(
        {
            "head epoch": head_epoch,
            "head finder": head_finder,
            "unfrozen epoch": unfrozen_epoch,
            "unfrozen finder": unfrozen_finder,
            "TTA": tta,
            "recipe": recipe,
        }
    )
