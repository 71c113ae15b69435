"""For every key of the recipe, where it arrives. A key without an entry here fails the first test."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.cache.maintenance import list_entries
from pipeline.recipe.schema import Recipe, flatten
from pipeline.runs.recipe_pictures import list_pictures
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from stages import precompute
from tests.stages import test_wiring_sweeps
from tests.stages.wiring import Seen, draw_pictures, recipe_on


def only(values: Any) -> Any:
    """The one value that all of these are."""
    (value,) = set(values)
    return value


def rates(name: str, epochs: int, batches: int) -> Callable[[Any], bool]:
    """The stage took so many steps, in so many epochs of so many batches."""
    return lambda chain: len(getattr(chain, name).steps) == epochs * batches


def ratio(name: str, number: float) -> Callable[[Any], bool]:
    def holds(chain: Any) -> bool:
        step = getattr(chain, name).steps[0].rates
        return bool(np.isclose(step["head"], number * step["late"]))

    return holds


def varied(key: str, value: object) -> Callable[[Any], bool]:
    return lambda chain: only(getattr(read.augmentation, key) for read in chain.fine_tune.training) == value


def trained(name: str, of_step: Callable[[Any], Any], value: object) -> Callable[[Any], bool]:
    return lambda chain: only(of_step(step) for step in getattr(chain, name).steps) == value


def batch_size(name: str, value: int) -> Callable[[Any], bool]:
    return lambda chain: only(read.batch_size for read in getattr(chain, name).training) == value


def starts_low(name: str, top: float) -> Callable[[Any], bool]:
    return lambda chain: np.isclose(getattr(chain, name).rates()[0], top / 25)


def rows_per_class(name: str, value: int) -> Callable[[Any], bool]:
    return lambda chain: only(len(read.rows) for read in getattr(chain, name).training) == 3 * value


def checkpoint(seen: Seen) -> dict[str, Any]:
    return json.loads((seen.files / "checkpoint" / "checkpoint.json").read_text())


def decay(name: str, value: float) -> Callable[[Any], bool]:
    return trained(name, lambda step: only(step.decays.values()), value)


def smoothing(name: str, value: float) -> Callable[[Any], bool]:
    return trained(name, lambda step: step.label_smoothing, value)


# What is seen of the key in the chain of `conftest.chain`, whose recipe is `wiring.recipe_on`.
ARRIVES: dict[str, Callable[[Any], bool]] = {
    "seed": lambda chain: only(read.seed for read in chain.fine_tune.training) == 3,
    "data.source": lambda chain: chain.manifest.root.name == "pictures",
    "data.valid_fraction": lambda chain: len(chain.manifest.rows("valid")) == 3 * 5,
    "data.test_fraction": lambda chain: len(chain.manifest.rows("test")) == 3 * 7,
    "data.fit": lambda chain: checkpoint(chain.precompute)["fit"] == "squish",
    "data.range": lambda chain: checkpoint(chain.resize)["ranges"] == {"integer": [0, 4095], "float": [0, 4095]},
    "model.backbone": lambda chain: checkpoint(chain.precompute)["backbone"] == "test_resnet",
    "model.weights": lambda chain: chain.precompute.run.data.tags["thaw.weights"] == "random:3",
    "head.hidden": lambda chain: chain.train_head.network()["head.2.weight"].shape == (24, 192),
    "head.dropout": lambda chain: checkpoint(chain.train_head)["dropout"] == 0.3,
    "augment.flip": varied("flip", "all"),
    "augment.rotate_degrees": varied("rotate_degrees", 10.0),
    "augment.zoom": varied("zoom", 1.15),
    "augment.crop": varied("crop", 0.9),
    "augment.lighting": varied("lighting", 0.15),
    "augment.strength": varied("rotate_degrees", 20.0 * 0.5),
    "augment.probability": varied("probability", 0.6),
    "precompute.image_px": lambda chain: checkpoint(chain.precompute)["image_px"] == 32,
    "precompute.dtype": lambda chain: np.load(chain.precompute.files / "activations/activations.npy").dtype == "f4",
    "lr_find.batch_size": batch_size("lr_find", 8),
    "lr_find.iterations": lambda chain: len(chain.lr_find.steps) in range(20, 31),
    "lr_find.start_lr": lambda chain: np.isclose(chain.lr_find.rates()[0], 1e-5),
    "lr_find.end_lr": lambda chain: np.isclose(chain.lr_find.rates()[1], 1e-5 * (2.0 / 1e-5) ** (1 / 29)),
    "lr_find.suggestion": lambda chain: chain.lr_find.metrics["suggestion/lr"]
    == chain.lr_find.metrics["suggestion/steep"],
    "lr_find.suggestion_unfrozen": lambda chain: chain.lr_find_unfrozen.metrics["suggestion/lr"]
    == chain.lr_find_unfrozen.metrics["suggestion/minimum"],
    "lr_find.lr_ratio": ratio("lr_find_unfrozen", 4),
    "lr_find.batchnorm": lambda chain: only(step.body_learns_statistics for step in chain.lr_find_unfrozen.steps),
    "lr_find.weight_decay": decay("lr_find", 0.03),
    "training.keep": lambda chain: checkpoint(chain.train_head)["kept_epochs"] == [2, 4, 8]
    and checkpoint(chain.fine_tune)["kept_epochs"] == [8 + 2, 8 + 8, 8 + 26],
    "train_head.fraction": rows_per_class("train_head", 10),
    "train_head.batch_size": batch_size("train_head", 6),
    "train_head.lr": lambda chain: np.isclose(max(chain.train_head.rates()), 0.004),
    "train_head.weight_decay": decay("train_head", 0.04),
    "train_head.label_smoothing": smoothing("train_head", 0.12),
    "train_head.stored_epochs": lambda chain: sum(len(step.shape) == 2 for step in chain.train_head.steps) == 2 * 5,
    "train_head.cycles": rates("train_head", 2 + 2 + 4, 5),
    "train_head.cycle_len": lambda chain: np.isclose(chain.train_head.rates()[2 * 5 + 2 * 5], 0.004),
    "train_head.cycle_mult": rates("train_head", 2 + 2 + 4, 5),
    "train_head.warm_up": starts_low("train_head", 0.004),
    "fine_tune.fraction": rows_per_class("fine_tune", 4),
    "fine_tune.batch_size": batch_size("fine_tune", 5),
    "fine_tune.lr": lambda chain: np.isclose(max(chain.fine_tune.rates()), 0.002),
    "fine_tune.lr_ratio": ratio("fine_tune", 6),
    "fine_tune.weight_decay": decay("fine_tune", 0.06),
    "fine_tune.label_smoothing": smoothing("fine_tune", 0.15),
    "fine_tune.cycles": rates("fine_tune", 2 + 6 + 18, 2),
    "fine_tune.cycle_len": lambda chain: np.isclose(chain.fine_tune.rates()[2 * 2], 0.002),
    "fine_tune.cycle_mult": rates("fine_tune", 2 + 6 + 18, 2),
    "fine_tune.warm_up": starts_low("fine_tune", 0.002),
    "resize.image_px": trained("resize", lambda step: step.shape[-1], 40),
    "resize.fraction": rows_per_class("resize", 11),
    "resize.batch_size": batch_size("resize", 4),
    "resize.lr_ratio": ratio("resize", 2),
    "resize.weight_decay": decay("resize", 0.07),
    "resize.label_smoothing": smoothing("resize", 0.2),
    "resize.cycles": rates("resize", 1 + 3, 8),
    "resize.cycle_len": lambda chain: np.isclose(chain.resize.rates()[8], 0.002),
    "resize.cycle_mult": rates("resize", 1 + 3, 8),
    "resize.warm_up": starts_low("resize", 0.002),
    "evaluate.batch_size": lambda chain: only(one["batch_size"] for one in chain.evaluate.predicted) == 7,
    "evaluate.tta_views": lambda chain: [len(one["views"]) for one in chain.evaluate.predicted
                                         if one["views"] is not None] == [3 - 1],  # the first is the plain one
    "evaluate.top_losses": lambda chain: shown_below(chain.evaluate, "Highest losses") == 5,
    "evaluate.positive_class": lambda chain: "flagging as cross" in (chain.evaluate.files / "report.md").read_text(),
    "evaluate.duplicate_similarity": lambda chain: 0.5
    <= pd.read_csv(chain.evaluate.files / "near_duplicates.csv")["similarity"].min() < 0.97,
    "evaluate.neighbours": lambda chain: len(pd.read_csv(chain.evaluate.files / "neighbours" / "pictures.csv")) == 7,
    "evaluate.onnx": lambda chain: not (chain.evaluate.files / "onnx").exists(),
    "evaluate.champion_by": lambda chain: "test/macro_f1" in chain.evaluate.run.data.tags["thaw.champion"],
    "evaluate.register_as": lambda chain: chain.evaluate.run.data.tags["thaw.model"] == "models:/wired/1",
}  # fmt: skip

HERE, WIRING = "tests.stages.test_recipe_keys", "tests.stages.test_wiring"
SIZES = "tests.stages.test_wiring_sizes"
PICTURES = "tests.pipeline.runs.test_recipe_pictures"
ENSEMBLES = "tests.stages.test_wiring_ensembles"
LATE = "test_the_late_group_trains_on_stored_feature_maps_and_their_views_while_the_early_one_stays_frozen"
BATCHNORM = "test_batchnorm_learns_new_statistics_where_the_recipe_says_batch"
RATES = "test_rates_that_are_listed_are_those_of_the_groups"
COMPILED = "test_a_network_is_compiled_once_for_each_size_that_it_trains_on_pictures_of_if_the_recipe_says_so"
MIXED = "test_mixing_arrives_in_the_batches_of_training"

# Keys that another test shows to arrive, by its file and name.
SHOWN_BY = {
    "seeds": (ENSEMBLES, "test_each_network_has_its_own_runs_in_one_of_its_seed_on_the_same_activations_and_split"),
    "training.snapshots": (ENSEMBLES, "test_the_networks_that_cycles_ended_with_stay_with_the_stage"),
    "device": (HERE, "test_the_device_of_the_recipe_is_asked_for"),
    "compile": (WIRING, COMPILED),
    "augment.perspective": (HERE, MIXED),
    "augment.erase": (HERE, MIXED),
    "augment.trivial": (HERE, MIXED),
    "training.balance": (HERE, "test_the_balance_of_the_recipe_arrives_in_the_split"),
    **{f"training.{key}": (WIRING, "test_what_all_training_stages_share_arrives_in_each_step_of_each")
       for key in ("optimizer", "momentum", "clip_norm", "accumulate", "average_decay", "early_stop_epochs",
                   "max_minutes")},
    **{f"{stage}.{key}": (SIZES, "test_the_body_is_thawed_group_by_group_and_its_blocks_are_skipped_if_asked_to")
       for stage in ("fine_tune", "resize") for key in ("gradual_epochs", "drop_path")},
    "stages": (SIZES, "test_each_step_is_a_run_on_the_one_before_it_and_those_without_cycles_are_left_out"),
    "reuse": ("tests.pipeline.runs.test_runner", "test_a_stage_that_is_never_to_be_reused_runs_again"),
    "data.split_seed": (HERE, "test_the_split_follows_from_its_own_seed"),
    **{f"data.{key}": ("tests.stages.test_wiring_soft_labels", test) for key, test in (
        ("soft_labels", "test_soft_labels_are_asked_of_the_source_before_the_first_stage_and_by_it"),
        ("uncertain_weight", "test_uncertain_pictures_weigh_less_in_each_training_step"),
    )},
    "data.corrections": (HERE, "test_labels_are_corrected_and_stores_are_found_again"),
    "data.extensions": (HERE, "test_files_of_other_endings_are_set_aside"),
    "data.max_bad": (HERE, "test_too_many_bad_pictures_stop_the_run"),
    "data.duplicates": (HERE, "test_copies_in_two_splits_stop_the_run_if_asked_to"),
    "data.decoder": (HERE, "test_a_decoder_that_is_not_here_is_refused"),
    "data.max_store_gib": (HERE, "test_pixels_are_not_stored_beyond_what_the_recipe_allows"),
    "data.max_logged_gib": (HERE, "test_pixels_are_not_logged_beyond_what_the_recipe_allows"),
    "data.max_download_gib": (PICTURES, "test_pictures_at_addresses_are_fetched_by_the_recipe"),
    "data.recheck_hours": (PICTURES, "test_pictures_at_addresses_are_fetched_by_the_recipe"),
    "augment.mixup": (HERE, MIXED),
    "augment.cutmix": (HERE, MIXED),
    "precompute.cut": (WIRING, LATE),
    "precompute.views": (WIRING, LATE),
    "precompute.batch_size": (HERE, "test_precompute_computes_by_its_own_batch_size"),
    "train_head.freeze": (WIRING, LATE),
    "train_head.lr_ratio": (WIRING, LATE),
    "train_head.batchnorm": (WIRING, BATCHNORM),
    "fine_tune.batchnorm": (WIRING, BATCHNORM),
    "resize.batchnorm": (WIRING, BATCHNORM),
    "resize.freeze": (WIRING, RATES),
    "resize.lr": (WIRING, RATES),
}  # fmt: skip


def shown_below(seen: Seen, heading: str) -> int:
    """How many pictures the report shows below a heading."""
    page = (seen.files / "report.html").read_text()
    return page.partition(f">{heading}<")[2].partition("<h3")[0].count("<figure>")


def test_every_key_of_the_recipe_is_shown_to_arrive():
    shown = [*ARRIVES, *SHOWN_BY, *test_wiring_sweeps.ARRIVES, *test_wiring_sweeps.HEADS_ARRIVE]
    assert sorted(shown) == sorted(flatten(Recipe()))


@pytest.mark.parametrize("key", ARRIVES)
def test_a_key_arrives_in_the_stage_that_it_is_for(key, chain):
    assert flatten(chain.recipe)[key] != flatten(Recipe())[key]
    assert ARRIVES[key](chain)


@pytest.mark.parametrize("key", SHOWN_BY)
def test_the_test_that_shows_a_key_exists(key):
    module, name = SHOWN_BY[key]
    assert callable(getattr(importlib.import_module(module), name))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("keys") / "pictures")


def splits(recipe: Recipe) -> list[str]:
    return list_pictures(recipe).table["split"].tolist()


def test_the_split_follows_from_its_own_seed(pictures):
    auto = recipe_on(pictures)
    assert splits(recipe_on(pictures, data__split_seed=3)) == splits(auto)
    assert splits(recipe_on(pictures, data__split_seed=4)) != splits(auto)
    assert splits(recipe_on(pictures, data__split_seed=3, seed=8)) == splits(auto)


def test_files_of_other_endings_are_set_aside(pictures):
    (pictures.parent / "dot" / "more.bmp").write_bytes((pictures.parent / "dot" / "0.png").read_bytes())
    folder = recipe_on(pictures.parent, data__extensions=[".png"])
    reasons = dict(list_pictures(folder).set_aside.itertuples(index=False, name=None))
    assert reasons["dot/more.bmp"] == ".bmp is not in data.extensions"
    (pictures.parent / "dot" / "more.bmp").unlink()


def test_too_many_bad_pictures_stop_the_run(tmp_path):
    table = draw_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "dot" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 72 pictures"):
        list_pictures(recipe_on(table, data__max_bad=0.01))
    assert len(list_pictures(recipe_on(table, data__max_bad=0.02)).table) == 71


def test_copies_in_two_splits_stop_the_run_if_asked_to(tmp_path):
    table = draw_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "dot" / "0.png").write_bytes((tmp_path / "pictures" / "cross" / "0.png").read_bytes())
    assert len(list_pictures(recipe_on(table, data__max_bad=0.1)).table) == 70
    with pytest.raises(UserError, match=r"data\.duplicates"):
        list_pictures(recipe_on(table, data__max_bad=0.1, data__duplicates="stop"))


@pytest.fixture
def on_server(own_server):
    with own_server() as folder:
        yield folder


def test_the_device_of_the_recipe_is_asked_for(on_server, pictures, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device is cuda"):
        precompute.run(recipe_on(pictures, device="cuda"))


def test_a_decoder_that_is_not_here_is_refused(on_server, pictures):
    with pytest.raises(UserError, match=r"data\.decoder is nvjpeg"):
        precompute.run(recipe_on(pictures, data__decoder="nvjpeg"))


def test_pixels_are_not_stored_beyond_what_the_recipe_allows(on_server, pictures, capsys):
    precompute.run(recipe_on(pictures, data__max_store_gib=1e-6))
    assert "more than data.max_store_gib = 1e-06" in capsys.readouterr().out


def test_pixels_are_not_logged_beyond_what_the_recipe_allows(on_server, pictures):
    runs = [precompute.run(recipe_on(pictures, data__max_logged_gib=size, reuse="never")) for size in (1e-6, 1.0)]
    artifacts = [[item.path for item in mlflow.MlflowClient().list_artifacts(run.run_id)] for run in runs]
    assert ["pixels" in paths for paths in artifacts] == [False, True]


def test_precompute_computes_by_its_own_batch_size(on_server, pictures, monkeypatch):
    sizes = []
    activations = precompute.start_network

    def note(*given):
        network = activations(*given)
        network.body.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return network

    monkeypatch.setattr(precompute, "start_network", note)
    precompute.run(recipe_on(pictures))
    assert sizes == [16] * 4 + [8]


def test_labels_are_corrected_and_stores_are_found_again(on_server, pictures, tmp_path):
    precompute.run(recipe_on(pictures))
    first, second = list_pictures(recipe_on(pictures)).table["hash"].iloc[:2]
    corrections = tmp_path / "corrections.csv"
    corrections.write_text(f"hash,action,label\n{first},relabel,cross\n{second},drop,\n{'0' * 64},drop,\n")
    stores = {entry.path for entry in list_entries()}
    done = precompute.run(recipe_on(pictures, data__corrections=str(corrections)))
    assert not done.reused
    assert {entry.path for entry in list_entries()} == stores
    run = mlflow.get_run(done.run_id)
    corrected = pd.read_csv(f"{run.info.artifact_uri}/manifest/corrections.csv", keep_default_na=False)
    assert corrected["label"].tolist() == ["cross", ""]
    assert "Pictures relabelled by data.corrections: 1, dropped: 1" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(("key", "value"), [("mixup", 0.4), ("cutmix", 0.4), ("perspective", 0.1), ("erase", 0.4),
                                            ("trivial", True)])  # fmt: skip
def test_mixing_arrives_in_the_batches_of_training(key, value):
    recipe = recipe_on(Path("nowhere"), augment__strength=1.0, **{f"augment__{key}": value})
    assert getattr(Upstream(recipe).augmentation, key) == value


@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_the_balance_of_the_recipe_arrives_in_the_split(pictures, balance):
    recipe = recipe_on(pictures, training__balance=balance)
    up = Upstream(recipe)
    vars(up)["manifest"] = list_pictures(recipe)
    split = up.split(0.5)
    assert (split.weights is not None, split.is_balanced) == (balance == "weights", balance == "sampler")
