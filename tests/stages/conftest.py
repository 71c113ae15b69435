"""Chains of runs that the tests of stages look at: each is made once, and nothing changes it afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.drawn_pictures import draw_pictures
from tests.stages.chains import Chain, recipe_on, run_chain
from tests.workplace import Workplace, new_workplace


@pytest.fixture(scope="session")
def fresh_workplace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Callable[[], Workplace]:
    """Gives an empty workplace at each call."""
    return lambda: new_workplace(tmp_path_factory.mktemp("workplace"), empty_database)


@pytest.fixture(scope="session")
def chain(fresh_workplace: Callable[[], Workplace]) -> Chain:
    """Every stage, by a recipe whose values differ from the defaults."""
    workplace = fresh_workplace()
    follows = {
        "precompute": "", "lr_find": "precompute", "train_head": "precompute", "lr_find_unfrozen": "train_head",
        "fine_tune": "train_head", "resize": "fine_tune", "evaluate": "resize",
    }  # fmt: skip
    return run_chain(workplace, recipe_on(draw_pictures(workplace.folder / "pictures")), follows)


@pytest.fixture
def on_chain(chain: Chain) -> Iterator[None]:
    """Further stages run on the runs of the chain, where it was made."""
    with chain.workplace.entered():
        yield


@pytest.fixture(scope="session")
def late_chain(fresh_workplace: Callable[[], Workplace]) -> Chain:
    """Stages that train by what is stored in front of the late group: feature maps of the pictures and of two views of
    each. The pictures' weights differ, networks are compiled, and BatchNorm learns new statistics."""
    workplace = fresh_workplace()
    recipe = recipe_on(
        draw_pictures(workplace.folder / "pictures", weights=True), compile=True,
        precompute__cut="late", precompute__views=2,
        train_head__freeze="early", train_head__cycles=1, train_head__batchnorm="batch",
        fine_tune__cycles=1, fine_tune__batchnorm="batch",
        resize__cycles=1, resize__batchnorm="batch", resize__freeze="none", resize__lr=[1e-4, 2e-4, 4e-4],
    )  # fmt: skip
    follows = {
        "precompute": "", "train_head": "precompute", "lr_find_unfrozen": "train_head",
        "fine_tune": "lr_find_unfrozen", "resize": "fine_tune",
    }  # fmt: skip
    return run_chain(workplace, recipe, follows)
