"""evaluate: one table of predictions, and every number derived from it; the served model, registered."""

from pipeline.cache.hashing import content_key
from pipeline.recipe.mistakes import check_positive_class
from pipeline.recipe.schema import Recipe
from pipeline.runs.ensemble.averaged_runs import ensemble_inputs, read_upstreams
from pipeline.runs.fingerprint import source_digest
from pipeline.runs.runner import run_stage
from pipeline.runs.served_code import pinned
from pipeline.system.later import later
from pipeline.tracking import RunRef
from stages.registry import STAGES


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Evaluate the upstream run's network on the test split, or, where there is none, on the validation split; of
    several upstream runs, with commas between them, the mean of their networks."""
    upstreams = read_upstreams(STAGES["evaluate"], recipe, upstream)
    up = upstreams[0]
    if recipe.evaluate.positive_class:
        check_positive_class(recipe.evaluate.positive_class, up.manifest.classes)
    served = {"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pinned())}
    advised_from = {"fine_tune_cycles": str(recipe.fine_tune.cycles)}  # what it follows may not depend on it
    inputs = served | advised_from | ensemble_inputs(upstreams)
    if recipe.data.corrections and len(decided := up.decided_manifest.corrected):
        inputs["decided"] = content_key({"decided": decided[["hash", "action", "label"]].to_dict("records")})
    return run_stage(STAGES["evaluate"], up, inputs, later("stages.work.evaluate.work", upstreams))
