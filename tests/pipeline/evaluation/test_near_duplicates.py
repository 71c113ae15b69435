import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity

from pipeline.data.decode import decode_square
from pipeline.data.readers.sources import list_source
from pipeline.evaluation import near_duplicates as module
from pipeline.evaluation.near_duplicates import near_duplicates
from pipeline.models.activations import StoreSettings, write_activations
from pipeline.models.body import load_weights
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.weights import find_weights
from pipeline.recipe.schema import Recipe

CPU = torch.device("cpu")


def table_of(splits: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(len(splits))],
            "split": splits,
            "label": ["cat", "dog"] * (len(splits) // 2) + ["cat"] * (len(splits) % 2),
            "hash": [f"hash {row}" for row in range(len(splits))],
        }
    )


@pytest.fixture
def pictures() -> tuple[pd.DataFrame, np.ndarray]:
    """40 pictures, half of them trained on, that have nothing in common but what all have: a large first activation."""
    activations = np.random.default_rng(0).normal(size=(40, 64))
    activations[:, 0] += 50
    return table_of((["train"] * 2 + ["valid", "test"]) * 10), activations.astype(np.float16)


def test_what_all_pictures_share_makes_no_pair(pictures):
    assert near_duplicates(*pictures, 0.9, CPU).empty


@pytest.mark.parametrize(("row", "twin", "splits"), [(3, 8, ("test", "train")), (6, 1, ("valid", "train")),
                                                     (7, 2, ("test", "valid"))])  # fmt: skip
def test_a_picture_is_found_with_its_twin_in_another_split(pictures, row, twin, splits):
    table, activations = pictures
    activations[row] = activations[twin] + 0.05 * np.random.default_rng(1).normal(size=64).astype(np.float16)
    (found,) = near_duplicates(table, activations, 0.9, CPU).to_dict("records")
    assert (found["row"], found["twin_row"]) == (row, twin)
    assert (found["split"], found["twin_split"]) == splits
    assert (found["path"], found["twin_path"]) == (f"{row}.png", f"{twin}.png")
    assert 0.99 < found["similarity"] <= 1.0001
    assert not found["same_file"]


@pytest.mark.parametrize(("row", "twin"), [(0, 1), (3, 7)])
def test_twins_within_a_split_do_not_matter(pictures, row, twin):
    table, activations = pictures
    activations[row] = activations[twin]
    assert near_duplicates(table, activations, 0.9, CPU).empty


def test_the_same_file_is_named_before_another_that_is_as_similar(pictures):
    table, activations = pictures
    activations[[0, 3, 5]] = activations[3]
    table.loc[5, "hash"] = table.loc[3, "hash"]
    (found,) = near_duplicates(table, activations, 0.9, CPU).to_dict("records")
    assert (found["row"], found["twin_row"], found["same_file"], found["similarity"]) == (3, 5, True, 1.0)


@pytest.mark.parametrize("chunk_rows", [1, 7, 16])
def test_the_chunks_do_not_matter(pictures, monkeypatch, chunk_rows):
    table, activations = pictures
    wanted = near_duplicates(table, activations, 0.1, CPU)
    assert len(wanted) > 5
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk_rows)
    found = near_duplicates(table, activations, 0.1, CPU)
    pd.testing.assert_frame_equal(found, wanted, atol=1e-5)


def test_each_twin_is_the_nearest_by_scikit_learns_cosine(pictures):
    table, activations = pictures
    centred = activations.astype(np.float64) - activations.astype(np.float64).mean(0)
    cosines = cosine_similarity(centred)
    for row in near_duplicates(table, activations, 0.05, CPU).to_dict("records"):
        others = np.flatnonzero(table["split"] == row["twin_split"])
        assert row["twin_row"] == others[cosines[row["row"], others].argmax()]
        assert row["similarity"] == pytest.approx(cosines[row["row"], row["twin_row"]], abs=1e-4)


def test_without_a_test_split_or_any_pair_the_table_is_empty_with_its_columns():
    found = near_duplicates(table_of(["train", "valid", "train"]), np.eye(3, 8), 0.97, CPU)
    assert found.empty
    assert list(found) == [*module.COLUMNS, "same_file"]


def test_a_real_picture_saved_anew_at_half_the_size_is_found_at_the_default_and_no_other():
    listing = list_source("elpv", [])
    paths = [listing.root / path for path in listing.paths[::40]]
    squares = [decode_square(path.read_bytes(), 128, "crop", True) for path in paths]
    file = io.BytesIO()
    Image.open(paths[20]).convert("L").resize((150, 150)).save(file, "JPEG", quality=90)
    squares.append(decode_square(file.getvalue(), 128, "crop", True))
    network = build_network(Checkpoint("tf_efficientnet_lite0", ["a", "b"], 0, 0.0, 128, "crop", True))
    load_weights(network.body, "tf_efficientnet_lite0", find_weights("tf_efficientnet_lite0", "auto", 0))
    rows = np.arange(len(squares), dtype=np.int64)
    activations = np.empty((len(rows), network.width), dtype=np.float32)
    settings = StoreSettings(len(rows), "float32", torch.device("cpu"))
    write_activations(activations, network, np.stack(squares), rows, settings)
    table = table_of(["train"] * len(paths) + ["test"])
    found = near_duplicates(table, activations, Recipe().evaluate.duplicate_similarity, CPU)
    assert found[["row", "twin_row"]].to_numpy().tolist() == [[len(paths), 20]]
    assert near_duplicates(table.assign(split=["train", "test"] * 33 + ["train"]), activations, 0.97, CPU).empty
