from statistics import NormalDist

import pandas as pd
import pytest

from pipeline.evaluation.run_comparison import (
    EvaluatedRun,
    align,
    confusion_differences,
    describe_tests,
    differing_settings,
    mcnemar_table,
    metrics_table,
)
from pipeline.system.errors import UserError

LABELS = ["cat"] * 10 + ["dog"] * 10


def evaluated(name="a", wrong=(), order=1, split="test", hashes=None, labels=LABELS, **more) -> EvaluatedRun:
    """A run that is wrong on these pictures, which it lists from the first or (`order` -1) from the last."""
    other = {"cat": "dog", "dog": "cat"}
    table = pd.DataFrame(
        {
            "hash": hashes or [f"{row:02}" for row in range(20)],
            "label": labels,
            "predicted": [other[label] if row in wrong else label for row, label in enumerate(labels)],
        }
    )
    facts = {"settings": {}, "metrics": {}, "curves": {}} | more
    return EvaluatedRun(name, name, split=split, classes=["cat", "dog"], evaluated=table[::order], **facts)


def test_pictures_are_matched_by_content_whatever_their_order():
    first, second = align([evaluated(wrong=[3]), evaluated(wrong=[4], order=-1)])
    assert first["hash"].tolist() == second["hash"].tolist()
    assert first.index[first["predicted"] != first["label"]].tolist() == [3]
    assert second.index[second["predicted"] != second["label"]].tolist() == [4]


@pytest.mark.parametrize(
    "other",
    [
        {"hashes": [f"{row:02}" for row in range(1, 21)]},
        {"labels": ["cat"] * 9 + ["dog"] * 11},
        {"split": "valid"},
    ],
    ids=["other pictures", "other labels", "another split"],
)
def test_runs_on_different_test_pictures_are_refused_with_the_reason(other):
    with pytest.raises(
        UserError, match=r"a was evaluated on 20 test pictures and c on 20 .* pictures, of which \d+ are"
    ):
        align([evaluated(), evaluated("b"), evaluated("c", **other)])


def test_mcnemar_counts_the_pictures_that_one_alone_is_right_on():
    runs = [
        evaluated("a", wrong=[0, 1]),
        evaluated("b", wrong=[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        evaluated("c", wrong=[0, 1]),
    ]
    table = mcnemar_table(runs, align(runs))
    assert table[["run", "other"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert table[["only_run", "only_other"]].to_numpy().tolist() == [[8, 1], [0, 0], [1, 8]]
    assert table["p"].tolist() == pytest.approx([20 / 512, 1.0, 20 / 512]), "2 (1 + 9) of the 2 ** 9 divisions"


def test_for_many_pictures_mcnemars_p_is_near_that_of_the_normal_distribution():
    labels = ["cat"] * 2000
    hashes = [f"{row:04}" for row in range(2000)]
    runs = [
        evaluated("a", range(400), hashes=hashes, labels=labels),
        evaluated("b", range(400, 900), hashes=hashes, labels=labels),
    ]
    p = mcnemar_table(runs, align(runs))["p"].item()
    z = (abs(500 - 400) - 1) / 900**0.5
    assert p == pytest.approx(2 * (1 - NormalDist().cdf(z)), rel=0.02)


def test_words_say_who_is_better_and_whether_it_may_be_chance():
    runs = [evaluated("a"), evaluated("b", wrong=range(9)), evaluated("c", wrong=[0]), evaluated("d", wrong=[1])]
    said = describe_tests(runs, mcnemar_table(runs, align(runs)))
    assert "a is right on 9 more of 20 than b, which is more than chance (p = 0.0039)." in said
    assert "a is right on 1 more of 20 than c, which may well be chance (p = 1)." in said
    assert "c and d are right on equally many pictures." in said
    assert "Of 6 tests, one in twenty" in said


def test_only_settings_that_differ_are_listed():
    runs = [
        evaluated("a", settings={"seed": 0, "fine_tune.lr": "auto", "reuse": "auto"}),
        evaluated("b", settings={"seed": 0, "fine_tune.lr": [1e-5, 1e-4], "reuse": "never"}),
    ]
    assert differing_settings(runs).to_numpy().tolist() == [["fine_tune.lr", "auto", "[1e-05, 0.0001]"]]


def test_metrics_stand_side_by_side_those_of_the_split_evaluated_first():
    runs = [
        evaluated("a", metrics={"valid/loss": 0.5, "test/accuracy": 0.8, "stage_seconds": 3.0}),
        evaluated("b", metrics={"test/accuracy": 0.9}),
    ]
    table = metrics_table(runs)
    assert table["metric"].tolist() == ["test/accuracy", "valid/loss"]
    assert table["a"].tolist() == [0.8, 0.5]
    assert table["b"].tolist()[0] == 0.9
    assert table["b"].isna().tolist() == [False, True]


def test_the_confusion_difference_is_each_run_less_the_first():
    runs = [evaluated("a", wrong=[0, 1]), evaluated("b", wrong=[0, 11, 12])]
    difference = confusion_differences(runs)
    assert list(difference) == ["b"]
    assert difference["b"].to_numpy().tolist() == [[1, -1], [2, -2]]
