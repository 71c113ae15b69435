"""Where keys arrive by which pictures are listed, split, stored, corrected, mixed and balanced."""

from pathlib import Path

import mlflow
import pandas as pd
import pytest

from pipeline.cache.maintenance import list_entries
from pipeline.recipe.schema import Recipe
from pipeline.runs.recipe_pictures import list_pictures
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import augmentation_of, split_of
from pipeline.system.errors import UserError
from stages import precompute
from stages.work import precompute as precompute_work
from tests.drawn_pictures import draw_pictures
from tests.stages.chains import recipe_on


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


def test_files_of_other_endings_are_set_aside(tmp_path):
    pictures = draw_pictures(tmp_path / "pictures")
    (pictures.parent / "dot" / "more.bmp").write_bytes((pictures.parent / "dot" / "0.png").read_bytes())
    folder = recipe_on(pictures.parent, data__extensions=[".png"])
    reasons = dict(list_pictures(folder).set_aside.itertuples(index=False, name=None))
    assert reasons["dot/more.bmp"] == ".bmp is not in data.extensions"


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


def test_the_device_of_the_recipe_is_asked_for(tracking_server, pictures, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device is cuda"):
        precompute.run(recipe_on(pictures, device="cuda"))


def test_a_decoder_that_is_not_here_is_refused(tracking_server, pictures):
    with pytest.raises(UserError, match=r"data\.decoder is nvjpeg"):
        precompute.run(recipe_on(pictures, data__decoder="nvjpeg"))


def test_pixels_are_not_stored_beyond_what_the_recipe_allows(tracking_server, pictures, capsys):
    precompute.run(recipe_on(pictures, data__max_store_gib=1e-6))
    assert "more than data.max_store_gib = 1e-06" in capsys.readouterr().out


def test_pixels_are_not_logged_beyond_what_the_recipe_allows(tracking_server, pictures):
    runs = [precompute.run(recipe_on(pictures, data__max_logged_gib=size, reuse="never")) for size in (1e-6, 1.0)]
    artifacts = [[item.path for item in mlflow.MlflowClient().list_artifacts(run.run_id)] for run in runs]
    assert ["pixels" in paths for paths in artifacts] == [False, True]


def test_precompute_computes_by_its_own_batch_size(tracking_server, pictures, monkeypatch):
    sizes = []
    activations = precompute_work.start_network

    def note(*given):
        network = activations(*given)
        network.body.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return network

    monkeypatch.setattr(precompute_work, "start_network", note)
    precompute.run(recipe_on(pictures))
    assert sizes == [16] * 4 + [8]


def test_labels_are_corrected_and_stores_are_found_again(tracking_server, pictures, tmp_path):
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
    assert getattr(augmentation_of(recipe), key) == value


@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_the_balance_of_the_recipe_arrives_in_the_split(pictures, balance):
    recipe = recipe_on(pictures, training__balance=balance)
    up = Upstream(recipe)
    vars(up)["manifest"] = list_pictures(recipe)
    split = split_of(up, 0.5)
    assert (split.weights is not None, split.is_balanced) == (balance == "weights", balance == "sampler")
