import pytest
from PIL import Image

from pipeline.recipe.picture_sections import Data, Model
from pipeline.recipe.schema import Recipe
from pipeline.runs import recipe_pictures
from pipeline.runs.recipe_pictures import gather_inputs, list_pictures
from pipeline.system.errors import UserError
from tests.picture_server import picture_server


def test_pictures_are_counted_corrections_applied_and_those_of_no_picture_told_once(tmp_path, capsys):
    recipe_pictures._say_once.cache_clear()
    for label, shades in {"cat": range(6), "dog": range(6, 12)}.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for shade in shades:
            Image.new("L", (4, 4), shade).save(tmp_path / "photos" / label / f"{shade}.png")
    data = Data(source=str(tmp_path / "photos"), test_fraction=0.0)
    content = list_pictures(Recipe(data=data)).table["hash"].iloc[0]
    file = tmp_path / "corrections.csv"
    file.write_text(f"hash,action,label\n{content},relabel,dog\n{'0' * 64},drop,\n")
    recipe = Recipe(data=data.model_copy(update={"corrections": str(file)}))
    assert [list_pictures(recipe).table["label"].iloc[0] for _ in range(2)] == ["dog", "dog"]
    said = capsys.readouterr().out
    assert said.count("1 of 2 corrections in data.corrections") == 1
    assert said.count("12 pictures of 2 classes: train 10, valid 2\n") == 1


def test_pictures_at_addresses_are_fetched_by_the_recipe(tmp_path):
    rows = ["path,label"]
    with picture_server(tmp_path) as server:
        for number in range(12):
            Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
            rows.append(f"{server.uri}/{number}.png,{'cat' if number % 2 else 'dog'}")
        (tmp_path / "pets.csv").write_text("\n".join(rows))

        def listed(**keys):
            return list_pictures(Recipe(data=Data(source=str(tmp_path / "pets.csv"), test_fraction=0.0, **keys)))

        with pytest.raises(UserError, match=r"more than data\.max_download_gib = 1e-08 allows"):
            listed(max_download_gib=1e-8)
        assert len(listed().table) == 12
        assert server.count("HEAD") == 0
        listed(recheck_hours=0.0)
        assert server.count("HEAD") == 12


def test_what_is_missing_is_reported_before_a_picture_is_opened(tracking_server, tmp_path, monkeypatch):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "no picture.png").write_text("nothing")
    recipe = Recipe(data=Data(source=str(tmp_path)), model=Model(weights="nowhere.pth"))
    with pytest.raises(UserError, match=r"nowhere\.pth, which does not exist"):
        gather_inputs(recipe)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}")
    with pytest.raises(UserError, match="The tracking server"):
        gather_inputs(recipe)
