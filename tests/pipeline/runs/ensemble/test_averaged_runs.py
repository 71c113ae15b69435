import pytest

from pipeline.runs.ensemble.averaged_runs import ensemble_inputs, read_upstreams
from pipeline.runs.stage import Stage
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from tests.pipeline.runs.upstreams import upstream


@pytest.fixture
def read(monkeypatch):
    """`read_upstreams` of these runs."""

    def read(*runs):
        by_id = {one.chain[0].run_id: one for one in runs}
        monkeypatch.setattr(Upstream, "of", lambda stage, recipe, run_id: by_id[run_id])
        return read_upstreams(Stage("evaluate"), None, ", ".join(by_id))

    return read


def test_runs_of_one_precompute_or_of_the_same_pictures_are_averaged(read, tmp_path):
    runs = [upstream(tmp_path, "a"), upstream(tmp_path, "b", image_px=48), upstream(tmp_path, "c", precompute="q")]
    assert read(*runs) == runs


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "other", "precompute": "q"},
        {"classes": ["cat", "hen"]},
        {"fit": "pad"},
        {"grey": True},
    ],
)
def test_networks_for_other_pictures_are_refused(read, tmp_path, other):
    with pytest.raises(UserError, match="The network of run b is for other pictures than that of run a"):
        read(upstream(tmp_path, "a"), upstream(tmp_path, "b", **other))


def test_a_run_that_is_named_twice_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Upstream, "of", lambda stage, recipe, run_id: upstream(tmp_path, run_id))
    with pytest.raises(UserError, match="upstream names run a twice"):
        read_upstreams(Stage("evaluate"), None, "a,a")


def test_an_evaluation_depends_on_all_networks_and_their_order(tmp_path):
    a, b, c = (upstream(tmp_path, run_id) for run_id in "abc")
    assert ensemble_inputs([a]) == {}, "so that an evaluation of one network is found again"
    assert ensemble_inputs([a, b]) != ensemble_inputs([a, c])
    assert ensemble_inputs([a, b, c]) != ensemble_inputs([a, c, b])
