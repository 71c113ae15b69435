"""The parsers of options, and the checks of a recipe that need no torch."""

import os

import pytest

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Precompute, Recipe, TrainHead
from pipeline.system import disk
from pipeline.system.errors import UserError
from stages.registry import (
    STAGES,
    check_stored_heads,
    parse_batch_size,
    parse_device,
    parse_gib,
    parse_output,
    parse_run_ids,
    parse_tta,
)


def test_run_ids_are_separated_by_commas():
    assert parse_run_ids("a, b,c,") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "words"), [("", "names 0 run"), ("a", "names 1 run; give two or more"), ("a,b,a", "runs names a twice")]
)
def test_fewer_than_two_runs_or_the_same_twice_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_run_ids(text)


def test_the_output_is_a_csv_or_parquet_file_in_an_existing_folder(tmp_path):
    assert parse_output(str(tmp_path / "out.Parquet")) == tmp_path / "out.Parquet"
    with pytest.raises(UserError, match=r"ends neither in .csv nor in .parquet"):
        parse_output("out.xlsx")
    with pytest.raises(UserError, match="there is no folder"):
        parse_output(str(tmp_path / "nowhere" / "out.csv"))


def test_an_output_that_cannot_be_written_is_reported_before_anything_is_predicted(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="which is a folder; name a file"):
        parse_output(str(tmp_path / "folder.csv"))
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="which is no file; name a file"):
        parse_output(str(tmp_path / "pipe.csv"))
    (tmp_path / "away.csv").symlink_to(tmp_path / "nowhere" / "out.csv")
    with pytest.raises(UserError, match=r"which cannot be written \(No such file or directory\); name another"):
        parse_output(str(tmp_path / "away.csv"))

    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UserError, match=r"which cannot be written \(Permission denied\); name another, or mend"):
        parse_output(str(tmp_path / "out.csv"))


def test_an_output_that_is_there_is_left_as_it_is_until_it_is_written(tmp_path):
    (tmp_path / "out.csv").write_text("before")
    parse_output(str(tmp_path / "out.csv"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_the_output_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_output("~/out.csv") == tmp_path / "out.csv"


def test_a_batch_size_is_a_whole_number_from_1_up():
    assert [parse_batch_size(text) for text in ("1", "32")] == [1, 32]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_other_batch_sizes_are_refused(text):
    with pytest.raises(UserError, match=f"^batch_size is {text}; give a whole number from 1 up.$"):
        parse_batch_size(text)


def test_a_device_is_auto_cpu_or_cuda():
    assert [parse_device(text) for text in ("auto", "cpu", "cuda")] == ["auto", "cpu", "cuda"]


def test_tta_is_true_or_false():
    assert [parse_tta(text) for text in ("true", "false")] == [True, False]
    for text in ("True", "yes", "4", ""):
        with pytest.raises(UserError, match=f"^tta is {text}; give true or false.$"):
            parse_tta(text)


@pytest.mark.parametrize("text", ["gpu", "CPU", "cuda:0", ""])
def test_other_devices_are_refused(text):
    with pytest.raises(UserError, match=f"^device is {text}; give auto, cpu or cuda.$"):
        parse_device(text)


@pytest.mark.parametrize(
    ("key", "choices", "said"),
    [
        ("model.backbone", ["resnet18", "resnet19"], "resnet19, which timm does not have; the nearest are resnet18,"),
        (
            "model.backbone",
            ["timm/convnext_tinyy.in12k"],
            "convnext_tinyy.in12k, which timm does not have; the nearest a",
        ),
        ("model.weights", ["random", "nowhere.pth"], "nowhere.pth, which does not exist; give auto, hub, random or a"),
    ],
)
def test_choices_of_a_sweep_that_do_not_exist_are_reported_as_in_a_recipe(key, choices, said):
    recipe = build_recipe({"sweep": {"space": {key: {"type": "choice", "of": choices}}}}, {}, "mine.yaml")
    with pytest.raises(UserError) as caught:
        [check(recipe) for check in STAGES["sweep"].checks]
    assert str(caught.value).startswith(f"In sweep.space: {key} is {said}")


def test_the_default_recipe_trains_a_head_that_others_can_be_compared_with():
    check_stored_heads(Recipe())


def test_without_training_on_stored_activations_there_is_no_head_to_compare_with():
    with pytest.raises(UserError, match=r"^train_head\.stored_epochs is 0, .*; set it to 1 or more\.$"):
        check_stored_heads(Recipe(train_head=TrainHead(stored_epochs=0)))


def test_activations_below_other_layers_than_the_head_cannot_be_used():
    with pytest.raises(UserError, match=r"below the late layer group, .*; run precompute with precompute\.cut=head\.$"):
        check_stored_heads(Recipe(precompute=Precompute(cut="late")))


def test_a_bound_in_gib_is_a_number_from_0_up():
    assert [parse_gib(text) for text in ("0", "1.5")] == [0, 1.5]
    for text in ("-1", "nan", "inf", "much"):
        with pytest.raises(UserError, match=f"^max_download_gib is {text}; give a number of GiB from 0 up"):
            parse_gib(text)


@pytest.mark.parametrize("name", ["main", "resize", "sweep"])
def test_a_step_of_resize_on_smaller_pictures_is_warned_of_when_a_command_begins(name, capsys):
    recipe = build_recipe({"precompute": {"image_px": 448}}, {}, "a test")
    for check in STAGES[name].checks:
        check(recipe)
    assert capsys.readouterr().err.startswith("resize.image_px is 384, which is not above precompute.image_px, 448")
