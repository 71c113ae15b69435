"""sweep: many trials of the recipe; the best is trained over seeds, evaluated once on the test split, registered."""

from pipeline import tracking
from pipeline.recipe.schema import Recipe
from pipeline.runs.recipe_check import check_recipe
from pipeline.runs.recipe_pictures import list_pictures
from pipeline.sweep.space import network_variants
from pipeline.sweep.study import open_storage, storage_url
from pipeline.sweep.study_run import Pictures, Steps, run_study
from pipeline.system.console import say
from pipeline.tracking import RunRef
from stages import evaluate
from stages.main import train


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Lead the study of this recipe, or run trials of it if another command leads it."""
    tracking.connect()
    if recipe.seeds > 1:
        say(f"seeds is {recipe.seeds}, which a sweep leaves alone: each trial is one network. main trains them all.")
    for variant in network_variants(recipe):
        check_recipe(variant)
    # A storage that cannot be reached is reported before pictures are opened.
    open_storage(storage_url(recipe.sweep.storage), recipe.sweep.heartbeat_seconds, make_tables=True)
    manifest = list_pictures(recipe)
    pictures = Pictures(manifest.name, manifest.digest, len(manifest.rows("valid")))
    return run_study(recipe, pictures, Steps(train, evaluate.run))
