import sys
from collections import Counter
from pathlib import Path
from subprocess import run

import pytest

from pipeline.data.readers.sources import list_source
from pipeline.system.errors import UserError

ENDINGS = [".jpg", ".png"]
PROJECT = Path(__file__).parents[4]


def test_elpv_has_its_published_number_of_pictures():
    listing = list_source("elpv", ENDINGS)
    assert len(listing.paths) == len(set(listing.paths)) == 2624
    assert Counter(listing.labels) == {"functional": 1803, "defective": 821}
    assert listing.splits is None
    assert listing.paths == sorted(listing.paths)
    assert all((listing.root / path).is_file() for path in listing.paths)


def test_elpv_is_defective_where_the_probability_is_above_a_half():
    listing = list_source("elpv", ENDINGS)
    label = dict(zip(listing.paths, listing.labels, strict=True))
    rows = [row.split() for row in (listing.root / "labels.csv").read_text().splitlines()]
    assert {label[row[0]] for row in rows if float(row[1]) > 0.5} == {"defective"}
    assert {label[row[0]] for row in rows if float(row[1]) < 0.5} == {"functional"}


def test_a_table_and_a_folder_of_the_same_pictures_list_the_same(tmp_path):
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "table.csv").write_text("path,label\ncat/1.jpg,cat\ndog/2.jpg,dog\n")
    table, folder = list_source(str(tmp_path / "table.csv"), ENDINGS), list_source(str(tmp_path), ENDINGS)
    assert (table.root, table.paths, table.labels) == (folder.root, folder.paths, folder.labels)
    assert table.name == f"{tmp_path.name}-table"


def test_nothing_heavy_is_loaded_to_list_a_table(tmp_path):
    (tmp_path / "table.csv").write_text("path,label\n1.jpg,cat\n2.jpg,dog\n")
    program = (
        "import sys\nfrom pipeline.data.readers.sources import list_source\n"
        f"list_source({str(tmp_path / 'table.csv')!r}, [])\nassert not {{'torch', 'pandas', 'PIL'}} & set(sys.modules)"
    )
    assert run([sys.executable, "-c", program], cwd=PROJECT).returncode == 0


def test_a_missing_folder_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        list_source("nowhere", ENDINGS)
    assert f"data.source is nowhere, which does not exist (looked for in {Path.cwd()})" in str(caught.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="is a file, not a folder, and no table; name a folder"):
        list_source(str(tmp_path / "photo.jpg"), ENDINGS)


@pytest.mark.parametrize("source", ["a" * 5000, "~nosuchuser/x", "a\0b"], ids=["too long", "of nobody", "with a zero"])
def test_an_impossible_path_is_an_error_of_one_sentence(source):
    with pytest.raises(UserError, match=r"^data\.source is .*, which cannot be read \(.*; name a folder of class"):
        list_source(source, ENDINGS)


def test_the_solar_cells_have_probabilities_if_asked_for_and_uncertain_ones_a_weight():
    plain, soft, weighted = (list_source("elpv", [], "", *given) for given in ((), (True,), (False, 0.5)))
    assert (plain.soft, plain.weights, weighted.soft) == (None, None, None)
    assert plain.labels == soft.labels == weighted.labels
    assert soft.soft.classes == ["defective", "functional"]
    assert Counter(soft.soft.shares).keys() == {(1.0, 0.0), (0.666667, 0.333333), (0.333333, 0.666667), (0.0, 1.0)}
    assert soft.weights is None
    expected = [0.5 if 0.1 < shares[0] < 0.9 else 1.0 for shares in soft.soft.shares]
    assert weighted.weights == expected


def test_a_tables_own_weights_are_multiplied_where_it_is_uncertain(tmp_path):
    (tmp_path / "pets.csv").write_text("path,cat,dog,weight\n1.jpg,0.6,0.4,4\n2.jpg,0,1,3\n")
    assert list_source(str(tmp_path / "pets.csv"), [], "", False, 0.5).weights == [2.0, 3.0]
    assert list_source(str(tmp_path / "pets.csv"), []).weights == [4.0, 3.0]


@pytest.mark.parametrize(
    ("given", "key"), [((True,), "soft_labels is true"), ((False, 0.5), "uncertain_weight is 0.5")]
)
def test_soft_labels_of_a_folder_are_refused(tmp_path, given, key):
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"data\.{key}, but .* names one class for each picture"):
        list_source(str(tmp_path), ENDINGS, "", *given)
