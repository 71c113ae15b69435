import shutil

import pytest

from pipeline.recipe.recipe_file import build_recipe
from pipeline.runs.recipe_check import check_recipe
from pipeline.system.errors import UserError

pytestmark = pytest.mark.usefixtures("tracking_server")


def recipe(**changes):
    small = {"model.backbone": "test_vit", "precompute.image_px": "160", "resize.image_px": "160"}
    return build_recipe({}, small | {key.replace("__", "."): value for key, value in changes.items()}, "here")


def test_a_recipe_that_can_be_done_passes():
    check_recipe(recipe())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize__image_px": "100"}, "takes no image of 100 px"),
        ({"precompute__image_px": "100"}, "takes no image of 100 px"),
        ({"data__decoder": "nvjpeg", "device": "cpu"}, "data.decoder is nvjpeg, but torch decodes no JPEG"),
        ({"reuse": "0" * 32}, "There is no run 0000"),
    ],
)
def test_what_cannot_be_done_is_known_before_the_first_stage(changes, words):
    with pytest.raises(UserError, match=words):
        check_recipe(recipe(**changes))


def test_a_missing_compiler_is_one_sentence_before_the_first_stage_and_stops_nothing(monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    check_recipe(recipe(device="cpu"))
    assert not capsys.readouterr().err
    for _ in range(2):
        check_recipe(recipe(device="cpu", compile="true"))
    assert capsys.readouterr().err.count("compile is true, but a C++ compiler (g++) is missing here") == 1
