"""A finished run is reused, unless something that its result depends on has another value."""

from typing import Any

import pytest

from pipeline.models import hub
from pipeline.recipe.schema import Recipe, flatten
from pipeline.runs import runner
from tests.stages.chains import COMMANDS


class Stopped(Exception):
    """Ends a stage once it has its fingerprint."""


# Values for keys whose default is the chain's value, or would not do after its stages.
OTHER = {
    "precompute.cut": "late", "precompute.views": 2, "train_head.lr": 0.5,
    "train_head.batchnorm": "batch", "fine_tune.lr": 0.5, "fine_tune.batchnorm": "batch", "resize.lr": 0.5,
    "resize.freeze": "none", "resize.batchnorm": "batch", "augment.mixup": 0.4, "augment.cutmix": 0.4,
    "augment.perspective": 0.1, "augment.erase": 0.3, "augment.trivial": True, "fine_tune.drop_path": 0.1,
    "resize.drop_path": 0.1, "fine_tune.gradual_epochs": 1, "resize.gradual_epochs": 1,
}  # fmt: skip
STEPS = "training.clip_norm", "training.accumulate"
# The stages by the run that they follow, with the sections or keys that their result depends on beside their own.
DEPENDS_ON = [
    ("precompute", "", ("precompute", "data.valid_fraction", "data.test_fraction", "data.fit", "data.range", "model")),
    ("lr_find", "precompute", ("lr_find", "head", "train_head.freeze", *STEPS)),
    ("train_head", "precompute", ("train_head", "head", "augment")),
    ("lr_find", "train_head", ("lr_find", "augment", *STEPS)),
    ("fine_tune", "train_head", ("fine_tune", "augment")),
    ("resize", "fine_tune", ("resize", "augment")),
    ("evaluate", "resize", ("evaluate", "augment")),
]


@pytest.mark.parametrize(("name", "upstream", "depends_on"), DEPENDS_ON)
def test_a_run_is_not_reused_for_another_value_of_a_key_that_it_depends_on(
    chain, on_chain, monkeypatch, name, upstream, depends_on
):
    of_key: dict[str, str] = {}
    fingerprint = runner.stage_fingerprint

    def stop(*arguments: Any) -> None:
        raise Stopped(fingerprint(*arguments))

    monkeypatch.setattr(runner, "stage_fingerprint", stop)
    monkeypatch.setattr(runner, "source_digest", lambda module: "code")
    monkeypatch.setattr(hub, "fetch_weights", lambda backbone, weights: weights)
    keys = [key for key in flatten(Recipe()) if key.startswith(tuple(f"{one}." for one in depends_on)) or
            key in depends_on]  # fmt: skip
    for key in ("", "seed", *keys):
        changes = {key.replace(".", "__"): OTHER.get(key, flatten(Recipe())[key])} if key else {}
        if key == "train_head.freeze":  # which goes with few others
            changes = {"train_head__freeze": "early", "train_head__stored_epochs": 0}
        with pytest.raises(Stopped) as found:
            COMMANDS[name](chain.other_recipe(**changes), chain[upstream].id if upstream else None)
        of_key[key] = str(found.value)
    assert {key for key in of_key if key and of_key[key] == of_key[""]} == set()
