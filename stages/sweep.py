"""sweep: many trials of the recipe; the best is trained over seeds, evaluated once on the test split, registered."""

from pipeline import tracking
from pipeline.recipe.schema import Recipe
from pipeline.sweep.study_run import Pictures, Steps, run_study
from pipeline.tracking import RunRef
from stages import evaluate
from stages.main import train
from stages.precompute import list_pictures


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Lead the study of this recipe, or run trials of it if another command leads it."""
    tracking.connect()
    manifest = list_pictures(recipe)
    pictures = Pictures(manifest.name, manifest.digest, len(manifest.rows("valid")))
    return run_study(recipe, pictures, Steps(train, evaluate.run))
