"""A curve that says nothing stops no recipe of which the finder is a part."""

import mlflow
import pytest

from pipeline.system.errors import UserError
from pipeline.training.lr_finder import KNOWN_RATE
from stages import lr_find, precompute
from tests.stages.wiring import draw_pictures, recipe_on


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_curve_that_says_nothing_gives_a_known_rate_for_adamw_alone(own_server, monkeypatch, capsys, optimizer):
    monkeypatch.setattr(lr_find, "suggest", lambda curve, is_trained: {"steep": None})
    with own_server() as folder:
        recipe = recipe_on(draw_pictures(folder / "pictures"), training={"optimizer": optimizer})
        first = precompute.run(recipe)
        if optimizer == "sgd":
            with pytest.raises(UserError, match="steep suggests nothing; look at figures"):
                lr_find.run(recipe, first.run_id)
        else:
            found = mlflow.get_run(lr_find.run(recipe, first.run_id).run_id)
            assert found.data.metrics["suggestion/lr"] == KNOWN_RATE
            assert "steep suggests nothing on this curve" in capsys.readouterr().out
