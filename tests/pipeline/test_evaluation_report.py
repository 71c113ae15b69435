import html
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation import Evaluation
from pipeline.evaluation_report import explain, write_evaluation
from pipeline.picture_groups import top_losses
from pipeline.recipe import Recipe, command_line
from tests.pipeline.evaluated import CPU, ODD, small_evaluation, small_network

SPLITS = ["train"] * 10 + ["valid"] * 10 + ["test"] * 15
FIGURES = {
    "confusion", "confusion_shares", "top_losses", "confidently_wrong", "most_uncertain", "some_right", "learning",
    "reliability", "label_errors", "near_duplicates", "curves", "embedding",
}  # fmt: skip
TABLES = {"predictions", "confusion", "confusion_shares", "confused_pairs", "classes", "label_errors"}
TABLES |= {"near_duplicates"}


def write(evaluation: Evaluation, network, pixels: np.ndarray, folder: Path, shown: int = 3) -> Path:
    write_evaluation(evaluation, network, pixels, shown, CPU, 0, partial(command_line, Recipe()), folder)
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> tuple[Evaluation, np.ndarray, Path]:
    """An evaluation of pictures whose classes have odd names, its pixels, and what was written about it."""
    network = small_network(ODD)
    evaluation, pixels = small_evaluation(network, ODD, SPLITS)
    return evaluation, pixels, write(evaluation, network, pixels, tmp_path_factory.mktemp("odd"))


def without_images(page: str) -> str:
    return re.sub(r"base64,[\w+/=]+", "", page)


def test_these_files_are_written(odd):
    found = {str(path.relative_to(odd[2])) for path in odd[2].rglob("*") if path.is_file()}
    tables = {f"{name}.csv" for name in TABLES}
    assert found == tables | {"report.html", "report.md"} | {f"figures/{name}.png" for name in FIGURES}


def test_the_written_predictions_are_the_table(odd):
    evaluation, _, folder = odd
    table = evaluation.table.reset_index(drop=True).rename_axis(None)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "predictions.csv"), table, check_dtype=False)


def test_the_written_confusion_and_classes_count_the_pictures_judged(odd):
    evaluation, _, folder = odd
    counts = pd.read_csv(folder / "confusion.csv", index_col=0)
    assert counts.index.tolist() == counts.columns.tolist() == ODD
    assert counts.to_numpy().sum() == len(evaluation.judged)
    assert np.trace(counts.to_numpy()) == (evaluation.judged["label"] == evaluation.judged["predicted"]).sum()
    classes = pd.read_csv(folder / "classes.csv")
    assert classes["class"].tolist() == ODD
    assert classes["pictures"].sum() == len(evaluation.judged)


def test_the_figures_are_pictures(odd):
    for path in (odd[2] / "figures").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 70


def test_the_report_holds_all_it_shows_and_asks_for_nothing_elsewhere(odd):
    page = (odd[2] / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/') == page.count("<img")
    shown_as_figures = FIGURES - {"top_losses", "confidently_wrong", "most_uncertain", "some_right"}
    shown_as_figures -= {"label_errors", "near_duplicates"}
    assert page.count('src="data:image/png;base64,') == len(shown_as_figures)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", without_images(page))


def test_the_report_says_the_headline_every_verdict_and_its_command_and_escapes_class_names(odd):
    evaluation, _, folder = odd
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert evaluation.headline() in page
    assert all(html.escape(one.words) in page for one in evaluation.verdicts)
    assert "&lt;b&gt;hen&lt;/b&gt;" in page
    assert "<b>hen" not in page
    assert "mlflow run . --env-manager local -P fine_tune.cycles=3" in page


def test_a_reader_finds_what_to_do_next_before_where_it_fails_and_this_before_the_rest(odd):
    headings = re.findall(r"<h2 id=.*?>(.+?)</h2>", (odd[2] / "report.html").read_text(encoding="utf-8"))
    assert headings[:4] == ["What to do next", "Where it fails", "Over-fitting", "Calibration"]
    assert len(headings) == 9


def test_the_markdown_report_links_figures_that_are_there(odd):
    text = (odd[2] / "report.md").read_text(encoding="utf-8")
    paths = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert {Path(path).stem for path in paths} == FIGURES - ({"label_errors"} if odd[0].label_errors.empty else set())
    assert all((odd[2] / path).is_file() for path in paths)


def test_two_classes_have_operating_points_and_no_second_list_of_the_confidently_wrong(tmp_path):
    network = small_network(ODD[:2])
    evaluation, pixels = small_evaluation(network, ODD[:2], SPLITS)
    page = (write(evaluation, network, pixels, tmp_path) / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "operating_points.csv").is_file()
    assert "Operating points" in page
    assert "the most confidently wrong are the highest losses above" in page


def test_one_class_alone_in_the_test_split_is_no_error(tmp_path):
    network = small_network(ODD[:2])
    splits = ["train"] * 4 + ["valid"] * 4 + ["test", "train"] * 3
    evaluation, pixels = small_evaluation(network, ODD[:2], splits)
    assert set(evaluation.judged["label"]) == {ODD[0]}
    page = (write(evaluation, network, pixels, tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "holds one class alone" in page
    assert "nan" not in without_images(page).lower()
    assert "test/roc_auc" not in evaluation.metrics


def test_a_backbone_without_a_feature_map_has_no_heat(odd):
    evaluation, _, _ = odd
    pixels = np.zeros((len(SPLITS), 160, 160, 3), np.uint8)
    assert explain(small_network(ODD, "test_vit", 160), pixels, evaluation.judged.head(2), ODD, CPU) is None


def test_the_heat_of_each_top_loss_is_for_the_class_predicted(odd):
    evaluation, pixels, _ = odd
    rows = top_losses(evaluation.judged, 4)
    network = small_network(ODD)
    heats = explain(network, pixels, rows, ODD, CPU)
    assert list(heats) == rows["row"].tolist()
    other = explain(network, pixels, rows.assign(predicted=rows["label"]), ODD, CPU)
    assert any(np.abs(heats[row] - other[row]).max() > 0.1 for row in heats)
