import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.label_errors import label_errors, training_label_errors

CLASSES = ["ant", "bee", "cow"]


def table_of(labels: list[int], probabilities: np.ndarray, splits: list[str]) -> pd.DataFrame:
    names = np.array(CLASSES)
    table = pd.DataFrame(
        {
            "row": np.arange(len(labels)) + 100,
            "path": [f"{row}.png" for row in range(len(labels))],
            "hash": [f"hash of {row + 100}" for row in range(len(labels))],
            "split": splits,
            "label": names[labels],
            "predicted": names[probabilities.argmax(1)],
            "confidence": probabilities.max(1),
        }
    )
    table[[f"probability/{name}" for name in CLASSES]] = probabilities
    return table


@pytest.fixture
def mislabelled() -> tuple[pd.DataFrame, list[int]]:
    """90 pictures of which a good model knows the class, and the rows of those that were given a wrong label."""
    draw = np.random.default_rng(0)
    true = np.arange(90) % 3
    logits = draw.normal(size=(90, 3)) + 5 * np.eye(3)[true]
    labels, wrong = true.copy(), [4, 31, 62]
    labels[wrong] = (true[wrong] + 1) % 3
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return table_of(labels, probabilities, ["train", "valid", "test"] * 30), [100 + row for row in wrong]


def test_wrong_labels_are_found_with_what_they_should_be(mislabelled):
    table, wrong = mislabelled
    table["split"] = ["valid", "test"] * 45
    found = label_errors(table, CLASSES)
    assert sorted(found["row"]) == wrong
    assert found["quality"].is_monotonic_increasing
    true = {CLASSES[(row - 100) % 3] for row in wrong}
    assert set(found["suggested"]) == true
    assert (found["suggested"] != found["label"]).all()
    assert (found["probability"] > 0.5).all()


def test_labels_that_a_person_has_decided_on_are_not_doubted_again(mislabelled):
    table, wrong = mislabelled
    table["split"] = ["valid", "test"] * 45
    everything = label_errors(table, CLASSES)
    left = label_errors(table, CLASSES, {f"hash of {wrong[1]}"})
    expected = everything[everything["row"] != wrong[1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(left, expected)


def test_training_rows_are_never_looked_at(mislabelled):
    table, _ = mislabelled
    found = label_errors(table, CLASSES)
    assert set(found["split"]) <= {"valid", "test"}
    everything_wrong = table.assign(label=np.where(table["split"] == "train", "cow", table["label"]))
    pd.testing.assert_frame_equal(label_errors(everything_wrong, CLASSES), found)


def test_the_quality_is_the_probability_of_the_label_as_it_is(mislabelled):
    table, _ = mislabelled
    for row in label_errors(table, CLASSES).to_dict("records"):
        given = table[table["row"] == row["row"]].iloc[0]
        assert row["quality"] == pytest.approx(given[f"probability/{row['label']}"])


@pytest.mark.parametrize("labels", [[], [0], [1] * 12])
def test_no_picture_and_one_class_alone_have_no_errors(labels):
    table = table_of(labels, np.tile([0.1, 0.2, 0.7], (len(labels), 1)), ["test"] * len(labels))
    found = label_errors(table, CLASSES)
    assert found.empty
    assert list(found) == ["row", "path", "split", "label", "suggested", "probability", "quality"]


def test_a_class_that_is_not_held_out_is_no_error(mislabelled):
    table, _ = mislabelled
    label_errors(table[table["label"] != "cow"], CLASSES)


def test_training_rows_are_judged_by_the_probabilities_that_are_given_for_them(mislabelled):
    table, wrong = mislabelled
    table["split"] = ["valid", "train", "test"] * 30
    manifest = table[["path", "split", "label", "hash"]].set_index(table["row"])
    train = table["split"] == "train"
    out_of_fold = table.loc[train, [f"probability/{name}" for name in CLASSES]].to_numpy()
    found = training_label_errors(manifest, CLASSES, out_of_fold)
    assert found["row"].iloc[0] in wrong
    as_held_out = label_errors(table[train].assign(split="valid"), CLASSES)
    pd.testing.assert_frame_equal(found, as_held_out.assign(split="train"))
    decided = {manifest["hash"].loc[found["row"].iloc[0]]}
    left = training_label_errors(manifest, CLASSES, out_of_fold, decided)
    assert left["row"].tolist() == found["row"].tolist()[1:]
