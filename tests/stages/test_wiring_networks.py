"""Each stage starts from the right network, saves what it trained, and runs again for what it depends on."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.cache.maintenance import list_entries
from pipeline.data.augment import Augmentation, view_matrices
from pipeline.evaluation import evaluation
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.engine import passes
from pipeline.models.engine.session import Session
from pipeline.models.network import build_head
from pipeline.recipe.schema import Recipe, flatten
from pipeline.runs import recipe_pictures, runner
from pipeline.tracking import RunRef
from pipeline.training import step
from stages import evaluate, fine_tune, lr_find, main, precompute, resize, train_head
from tests.stages.wiring import recipe_on, run_watched

# Of the recipe, with its strength of 0.5.
AUGMENTED = Augmentation("all", 10.0, 1.15, 0.9, 0.15, 0.6)

STAGES = {one.__name__.removeprefix("stages."): one for one in (
    precompute, lr_find, train_head, fine_tune, resize, evaluate,
)}  # fmt: skip


class Stopped(Exception):
    """Ends a stage once it has done what a test looks at."""


def recipe_of(chain, **changes: Any) -> Recipe:
    """The recipe of the chain with other values of some keys (a__b for a.b)."""
    return recipe_on(chain.recipe.data.source, **changes)


def id_of(seen) -> str:
    return seen.run.info.run_id


@pytest.fixture
def on_chain(chain, monkeypatch) -> None:
    """Further stages run on the runs of the chain, in its cache and its tracking database."""
    folder = chain.precompute.files.parents[2]
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("THAW_CACHE", str(folder / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", chain.precompute.run.info.experiment_id)
    monkeypatch.chdir(folder)


def pixels(chain, size_px: int) -> np.ndarray:
    """The pictures squished to this size, without the library."""
    paths = [chain.manifest.root / path for path in chain.manifest.table["path"]]
    squares = [Image.open(path).resize((size_px, size_px), Image.Resampling.BILINEAR) for path in paths]
    return np.stack([np.asarray(square) for square in squares])


@torch.no_grad()
def probabilities(chain, seen, split: str) -> np.ndarray:
    """What the network that a stage saved makes of a split, picture by picture of the files."""
    network, checkpoint = load_checkpoint(seen.files / "checkpoint")
    images = torch.from_numpy(pixels(chain, checkpoint.image_px)[chain.manifest.rows(split)])
    return network.eval()(images.permute(0, 3, 1, 2) / 255).double().softmax(1).numpy()


def loss_and_accuracy(chain, seen, split: str) -> tuple[float, float]:
    found, targets = probabilities(chain, seen, split), chain.manifest.targets[chain.manifest.rows(split)]
    return -np.log(found[np.arange(len(targets)), targets]).mean(), (found.argmax(1) == targets).mean()


@pytest.mark.parametrize("size_px", [32, 40])
def test_the_pictures_are_read_as_the_recipe_fits_them_at_the_size_of_each_stage(chain, size_px):
    stored = np.load(chain.precompute.files / "pixels" / str(size_px) / "pixels.npy")
    np.testing.assert_array_equal(stored, pixels(chain, size_px))


@pytest.mark.parametrize(
    ("name", "before"),
    [("lr_find_unfrozen", "train_head"), ("fine_tune", "train_head"), ("resize", "fine_tune")],
)
def test_a_stage_trains_the_network_of_the_stage_before_it(chain, name, before):
    first, saved = getattr(chain, name).first_state, getattr(chain, before).network()
    assert {key for key, tensor in saved.items() if not torch.equal(first[key], tensor)} == set()


def test_the_finder_tests_the_new_head_that_is_trained_next(chain):
    torch.manual_seed(3)
    fresh = build_head(192, 3, 24, 0.3).state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in chain.lr_find.first_state.items())


@pytest.mark.parametrize("name", ["lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize"])
def test_the_head_drops_the_share_of_the_recipe_and_half_of_it_before_its_hidden_layer(chain, name):
    assert {step.dropouts for step in getattr(chain, name).steps} == {(0.15, 0.3)}


@pytest.mark.parametrize(("name", "groups"), [("train_head", ["head"]), ("fine_tune", ["early", "late", "head"]),
                                              ("resize", ["late", "head"])])  # fmt: skip
def test_the_table_of_steps_has_the_rate_of_every_group_that_is_trained(chain, name, groups):
    seen = getattr(chain, name)
    table = pd.read_csv(seen.files / "steps.csv")
    assert table.columns.tolist() == ["step", "loss", *groups]
    for group in groups:
        assert table[group].tolist() == pytest.approx(seen.rates(group))


@pytest.mark.parametrize("name", ["train_head", "fine_tune", "resize"])
def test_the_figures_of_what_is_kept_are_those_of_the_saved_network_on_the_validation_pictures(chain, name):
    seen = getattr(chain, name)
    told = seen.metrics["kept_valid_loss"], seen.metrics["kept_valid_accuracy"]
    assert told == pytest.approx(loss_and_accuracy(chain, seen, "valid"), abs=1e-4)


@pytest.mark.parametrize("name", ["train_head", "fine_tune", "resize"])
def test_the_training_loss_of_an_epoch_is_the_mean_of_its_steps(chain, name):
    seen = getattr(chain, name)
    epochs, steps = (pd.read_csv(seen.files / f"{table}.csv") for table in ("epochs", "steps"))
    of_epochs = [part.mean() for part in np.split(steps["loss"].to_numpy(), len(epochs))]
    assert epochs["train_loss"].tolist() == pytest.approx(of_epochs)
    assert seen.metrics["train/loss"] == pytest.approx(of_epochs[-1])


def test_the_finder_suggests_where_the_smoothed_loss_falls_fastest(chain):
    curve = pd.read_csv(chain.lr_find.files / "curve.csv")
    usable = curve.iloc[len(curve) // 10 : len(curve) - 5].reset_index()
    falling = usable[: usable["smoothed_loss"].idxmin() + 1]
    slopes = np.diff(falling["smoothed_loss"]) / np.diff(np.log(falling["lr"]))
    assert chain.lr_find.metrics["suggestion/lr"] == pytest.approx(falling["lr"][slopes.argmin()])
    assert set(curve["lr"]) == set(np.asarray(chain.lr_find.rates())[: len(curve)])


def test_the_table_of_predictions_is_of_the_last_network_and_of_every_picture(chain):
    table = pd.read_csv(chain.evaluate.files / "predictions.csv")
    for split in ("train", "valid", "test"):
        of_split = table[table["split"] == split]
        assert of_split["row"].tolist() == chain.manifest.rows(split).tolist()
        columns = [f"probability/{label}" for label in chain.manifest.classes]
        np.testing.assert_allclose(of_split[columns], probabilities(chain, chain.resize, split), atol=1e-4)


def test_advice_on_over_fitting_starts_from_chance_and_from_the_recipes_cycles_and_dropout(chain):
    assert chain.evaluate.advised_from == [(pytest.approx(math.log(3)), 3, 0.3)]


def test_frozen_passes_over_many_pictures_go_through_onnx_runtime_into_stores_of_their_own(
    chain, on_chain, monkeypatch, capsys
):
    monkeypatch.setattr(passes, "LEAST_PIXELS", 72 * 32**2)  # what precompute reads
    computed = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: computed.append(len(images)) or run(self, images))
    stores = {entry.path for entry in list_entries() if entry.kind == "activations"}
    run_watched(precompute.run, recipe_of(chain, reuse="never"))
    assert sum(computed) == 72 + 4, "every picture, and those that are compared with the network's own"
    (store,) = {entry.path for entry in list_entries() if entry.kind == "activations"} - stores
    own = np.load(chain.precompute.files / "activations" / "activations.npy")
    np.testing.assert_allclose(np.load(store / "activations.npy"), own, atol=1e-4)
    computed.clear()
    run_watched(precompute.run, recipe_of(chain, reuse="never"))
    assert sum(computed) == 4, "its store is found"
    monkeypatch.setattr(passes, "LEAST_PIXELS", 72 * 40**2)  # what evaluate reads
    again = run_watched(evaluate.run, recipe_of(chain, reuse="never"), chain.resize)
    assert sum(computed) == 4 + 4 + 72 + 2 * 21
    found = pd.read_csv(again.files / "predictions.csv")
    table = pd.read_csv(chain.evaluate.files / "predictions.csv")
    for column in ("loss", "tta_loss"):
        np.testing.assert_allclose(found[column], table[column], atol=1e-4)
    assert "PyTorch computes" not in capsys.readouterr().out


def test_the_frozen_part_of_a_training_on_many_pictures_goes_through_onnx_runtime(chain, on_chain, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_PIXELS", 4 * 33 * 40**2)  # four epochs of 0.9 of the training pictures
    computed = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: computed.append(len(images)) or run(self, images))
    again = run_watched(resize.run, recipe_of(chain, reuse="never"), chain.fine_tune)
    assert sum(computed) == 4 + 4 * (32 + 15) + 15, "those compared; each epoch's, with validation; and the mean's"
    assert [step.rates for step in again.steps] == [step.rates for step in chain.resize.steps]
    for name, tensor in again.network().items():
        torch.testing.assert_close(tensor, chain.resize.network()[name], rtol=1e-2, atol=1e-3)
    computed.clear()
    monkeypatch.setattr(passes, "LEAST_PIXELS", 4 * 33 * 40**2 + 1)
    run_watched(resize.run, recipe_of(chain, reuse="never", resize__cycles=1), chain.fine_tune)
    assert not computed


@pytest.mark.parametrize(("flip", "views"), [("all", 3), ("none", 4)])
def test_the_views_of_the_test_pictures_are_the_flips_and_corners_of_the_recipe(
    chain, on_chain, monkeypatch, flip, views
):
    given = []

    def stop(*arguments: Any) -> None:
        given.extend(one for one in arguments if isinstance(one, torch.Tensor))
        raise Stopped

    monkeypatch.setattr(evaluation, "predict_members", stop)
    recipe = recipe_of(chain, augment__flip=flip, evaluate__tta_views=views, reuse="never")
    with pytest.raises(Stopped):
        evaluate.run(recipe, id_of(chain.resize))
    (matrices,) = given
    torch.testing.assert_close(matrices, view_matrices(flip, 0.8, views))


@pytest.mark.parametrize(("name", "upstream"), [("train_head", "lr_find"), ("resize", "lr_find_unfrozen")])
def test_an_automatic_rate_is_the_suggestion_of_the_finder_just_before(chain, on_chain, monkeypatch, name, upstream):
    def stop(module: Any, optimizer: Any, *batch: Any) -> None:
        raise Stopped([group["lr"] for group in optimizer.param_groups if group["layer_group"] == "head"])

    monkeypatch.setattr(step, "train_step", stop)
    with pytest.raises(Stopped) as first:
        STAGES[name].run(
            recipe_of(chain, train_head__lr="auto", train_head__warm_up=0.0, resize__warm_up=0.0),
            id_of(getattr(chain, upstream)),
        )
    assert set(first.value.args[0]) == {getattr(chain, upstream).metrics["suggestion/lr"]}


def test_views_are_of_training_pictures_alone_varied_by_the_recipe_and_its_seed(chain, on_chain, monkeypatch):
    def stop(rows: Any, count: int, augmentation: Augmentation, seed: int) -> None:
        raise Stopped(rows.tolist(), count, augmentation, seed)

    monkeypatch.setattr(precompute, "Views", stop)
    with pytest.raises(Stopped) as given:
        precompute.run(recipe_of(chain, precompute__views=2))
    assert given.value.args == (chain.manifest.rows("train").tolist(), 2, AUGMENTED, 3)


# Values for keys whose default is the chain's value, or would not do after its stages.
OTHER = {
    "precompute.cut": "late", "precompute.views": 2, "train_head.lr": 0.5,
    "train_head.batchnorm": "batch", "fine_tune.lr": 0.5, "fine_tune.batchnorm": "batch", "resize.lr": 0.5,
    "resize.freeze": "none", "resize.batchnorm": "batch", "augment.mixup": 0.4, "augment.cutmix": 0.4,
    "augment.perspective": 0.1, "augment.erase": 0.3, "augment.trivial": True, "fine_tune.drop_path": 0.1,
    "resize.drop_path": 0.1, "fine_tune.gradual_epochs": 1, "resize.gradual_epochs": 1,
}  # fmt: skip
# The stages by the run that they follow, with the sections or keys that their result depends on beside their own.
DEPENDS_ON = [
    ("precompute", "", ("precompute", "data.valid_fraction", "data.test_fraction", "data.fit", "data.range", "model")),
    ("lr_find", "precompute", ("lr_find", "head", "train_head.freeze")),
    ("train_head", "precompute", ("train_head", "head", "augment")),
    ("lr_find", "train_head", ("lr_find", "augment")),
    ("fine_tune", "train_head", ("fine_tune", "augment")),
    ("resize", "fine_tune", ("resize", "augment")),
    ("evaluate", "resize", ("evaluate", "augment")),
]


@pytest.mark.parametrize(("name", "upstream", "depends_on"), DEPENDS_ON)
def test_a_run_is_not_reused_for_another_value_of_a_key_that_it_depends_on(
    chain, on_chain, monkeypatch, name, upstream, depends_on
):
    of_key: dict[str, str] = {}
    fingerprint = runner.stage_fingerprint

    def stop(*arguments: Any) -> None:
        raise Stopped(fingerprint(*arguments))

    monkeypatch.setattr(runner, "stage_fingerprint", stop)
    monkeypatch.setattr(runner, "source_digest", lambda module: "code")
    monkeypatch.setattr(recipe_pictures, "fetch_weights", lambda backbone, weights: weights)
    keys = [key for key in flatten(Recipe()) if key.startswith(tuple(f"{one}." for one in depends_on)) or
            key in depends_on]  # fmt: skip
    for key in ("", "seed", *keys):
        changes = {key.replace(".", "__"): OTHER.get(key, flatten(Recipe())[key])} if key else {}
        if key == "train_head.freeze":  # which goes with few others
            changes = {"train_head__freeze": "early", "train_head__stored_epochs": 0}
        with pytest.raises(Stopped) as found:
            STAGES[name].run(recipe_of(chain, **changes), id_of(getattr(chain, upstream)) if upstream else None)
        of_key[key] = str(found.value)
    assert {key for key in of_key if key and of_key[key] == of_key[""]} == set()


@pytest.fixture
def noted(monkeypatch) -> list[tuple[str, str | None]]:
    """Every stage that main runs, and the run that it is given; none of them does anything."""
    ran: list[tuple[str, str | None]] = []

    def stand_in(name: str) -> Any:
        def run(recipe: Recipe, upstream: str | None = None, *after_epoch: Any) -> RunRef:
            ran.append((name, upstream))
            return RunRef(f"{name} {len(ran)}", name, "", upstream)

        return run

    for name in ("precompute", "lr_find", "train_head", "fine_tune", "resize"):
        monkeypatch.setattr(getattr(main, name), "run", stand_in(name))
    return ran


def order(trained: Iterator[tuple[str, RunRef]]) -> list[str]:
    return [name for name, _ in trained]


def test_main_trains_on_the_finders_runs_where_a_rate_is_auto(noted):
    assert order(main.train(Recipe())) == [
        "precompute", "lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize",
    ]  # fmt: skip
    assert noted == [
        ("precompute", None), ("lr_find", "precompute 1"), ("train_head", "lr_find 2"), ("lr_find", "train_head 3"),
        ("fine_tune", "lr_find 4"), ("resize", "fine_tune 5"),
    ]  # fmt: skip


@pytest.mark.parametrize("find_given", [True, False])
def test_main_trains_past_the_finder_where_the_recipe_gives_the_rate(noted, chain, find_given):
    order(main.train(chain.recipe, find_given=find_given))
    by_stage = {name: upstream for name, upstream in noted if name != "lr_find"}
    assert [(upstream or "").split(" ")[0] for upstream in by_stage.values()] == [
        "", "precompute", "train_head", "fine_tune",
    ]  # fmt: skip
    assert [upstream.split(" ")[0] for name, upstream in noted if name == "lr_find"] == (
        ["precompute", "train_head"] if find_given else []
    )
