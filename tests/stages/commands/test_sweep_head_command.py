"""sweep_head as a user types it: many heads on the stored activations of an earlier run."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.recipe.recipe_file import read_recipe

pytestmark = pytest.mark.slow

FEW = ["sweep_head.settings=5", "sweep_head.seeds=2", "sweep_head.finder_seeds=3", "head.hidden=0"]


@pytest.fixture(scope="module")
def swept(workplace, main):
    """What the command printed, and its run."""
    printed = workplace.command("sweep_head", f"upstream={main.stage('precompute').info.run_id}", *FEW)
    return printed, workplace.runs(stage="sweep_head")


def test_one_run_holds_all_heads_and_the_recipe_of_the_best(swept):
    printed, (run,) = swept
    place, metrics = run.info.artifact_uri, run.data.metrics
    heads, settings = pd.read_csv(f"{place}/heads.csv"), pd.read_csv(f"{place}/settings.csv")
    assert len(heads) == metrics["heads/trained"] == 10
    assert settings["is_own"].sum() == 1
    own = settings[settings["is_own"]].iloc[0]
    assert own["lr"] == pytest.approx(metrics["suggestion/lr"])
    assert own["stored_epochs"] == 2
    assert metrics["best/valid_accuracy"] == settings["valid_accuracy_mean"].max() >= metrics["own/valid_accuracy"]
    best = read_recipe(Path(place) / "best_recipe.yaml")
    assert best.train_head.lr == pytest.approx(settings["lr"][0])
    assert best.head.dropout == settings["dropout"][0]
    assert "The best settings, over the seeds" in printed
    for name in ("lr_band", "rates", "seed_noise"):
        assert (Path(place) / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
