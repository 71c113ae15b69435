import pandas as pd
import pytest

from pipeline.comparison import JudgedRun
from pipeline.comparison_report import write_comparison
from pipeline.errors import UserError


def judged(name, predicted, hashes=("1", "2", "3")):
    table = pd.DataFrame({"hash": hashes, "label": ["cat", "dog", "dog"], "predicted": predicted})
    curves = {"valid/loss": pd.DataFrame({"step": [1, 2], "value": [0.5, 0.4]})}
    settings = {"seed": 0, "fine_tune.lr": name}
    return JudgedRun(name, name, settings, {"test/accuracy": 0.5}, "test", ["cat", "dog"], table, curves)


def test_the_page_holds_every_table_and_figure_by_itself(tmp_path):
    runs = [
        judged("<a>", ["cat", "dog", "cat"]),
        judged("b", ["cat", "dog", "dog"]),
        judged("c", ["dog", "dog", "dog"]),
    ]
    summary = write_comparison(runs, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    for words in (
        "3 runs on the same 3 test pictures",
        "McNemar",
        "fine_tune.lr",
        "test/accuracy",
        "may well be chance",
    ):
        assert words in page
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.html", "figures", "mcnemar.csv", "metrics.csv", "settings.csv",
    }  # fmt: skip
    assert pd.read_csv(tmp_path / "mcnemar.csv")["only_other"].tolist() == [1, 1, 0]
    assert summary.startswith("3 runs on the same 3 test pictures.")


def test_nothing_is_written_of_runs_on_different_pictures(tmp_path):
    runs = [judged("a", ["cat", "dog", "cat"]), judged("b", ["cat", "dog", "dog"], hashes=("1", "2", "9"))]
    with pytest.raises(UserError, match="of which 2 are the same"):
        write_comparison(runs, tmp_path)
    assert list(tmp_path.iterdir()) == []
