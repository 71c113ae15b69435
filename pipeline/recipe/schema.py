"""The recipe: every choice of a run, typed, with one section per stage.

A field's description says what the key takes, and is what a user reads after a mistake and in `--help`.
Reading and overriding are in `recipe_file`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.recipe.fields import (
    ALL_STAGES,
    STAGE_NAMES,
    BatchSize,
    ImageSize,
    Rate,
    Section,
    folds,
    stage_names,
)
from pipeline.recipe.picture_sections import Augment, Data, Head, Model
from pipeline.recipe.sweep_sections import Sweep, SweepHead
from pipeline.recipe.training_sections import FineTune, Resize, ResizeSteps, TrainHead, TrainingOptions
from pipeline.recipe.yaml_rules import write_yaml
from pipeline.system.text import plain_name


class Precompute(Section):
    """The one pass of the frozen layer groups."""

    image_px: ImageSize = 320
    cut: Literal["head", "late"] = Field(
        "head",
        description="head or late: the layer group that activations are stored in front of; late takes more disk, and "
        "lets train_head train the late group on them too",
    )
    batch_size: BatchSize = 64
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="float16 or float32: how activations are stored, with half the disk or all digits"
    )
    views: int = Field(
        0,
        ge=0,
        le=100,
        description="a whole number from 0 to 100: augmented views of each training picture that the head trains on "
        "beside the plain one",
    )


class LrFind(Section):
    """The range test, of what will be trained: batches, decay, smoothing and freezing are those of the next stage."""

    iterations: int = Field(
        100, ge=20, le=10_000, description="a whole number from 20 to 10000: batches from end to end of the rates"
    )
    start_lr: Rate = Field(1e-6, description="a rate above 0, below end_lr: the lowest that is tried")
    end_lr: Rate = Field(10.0, description="a rate above start_lr, below 1000: the highest that is tried")
    suggestion: Literal["valley", "steep", "slide", "minimum"] = Field(
        "valley", description="valley, steep, slide or minimum: which suggestion `lr: auto` takes"
    )
    suggestion_unfrozen: Literal["below_rise", "valley", "steep", "slide", "minimum"] = Field(
        "below_rise",
        description="below_rise, valley, steep, slide or minimum: the same where the head is trained, so that the "
        "curve hardly falls",
    )


class Evaluate(Section):
    """What is evaluated, and how the model is registered."""

    batch_size: BatchSize = 16
    tta_views: int = Field(4, ge=1, le=12, description="a whole number from 1 (no TTA) to 12")
    top_losses: int = Field(16, ge=1, le=100, description="a whole number from 1 to 100: how many the report shows")
    positive_class: Annotated[str, AfterValidator(plain_name)] = Field(
        "",
        description="the class that operating points are listed for, or empty: of two classes the rarer one in "
        "training, of more none",
    )
    duplicate_similarity: float = Field(
        0.97,
        gt=0,
        le=1,
        description="a number above 0, up to 1: pictures of different splits whose activations are at least as similar "
        "are listed as near-duplicates",
    )
    cross_validation_folds: Annotated[int, AfterValidator(folds)] = Field(
        5,
        ge=0,
        le=50,
        description="0 (none) or a whole number from 2 to 50: parts of the training pictures, each judged by a head "
        "that was trained on the others, to find labels that are likely wrong",
    )
    neighbours: int = Field(
        2000,
        ge=0,
        le=20_000,
        description="a whole number from 0 to 20000: of how many training pictures the run keeps a thumbnail and the "
        "activations, some 6 kB each, to show which are most like a new picture (the command try)",
    )
    onnx: bool = Field(True, description="true or false: export the model as ONNX too, which takes ten seconds")
    champion_by: Literal["accuracy", "macro_f1"] = Field(
        "accuracy", description="accuracy or macro_f1: what a version has to be better in to become the champion"
    )
    register_as: str = Field(
        "auto",
        pattern=r"^[^/:]*$",
        description='auto ("thaw-" and the name of the data), a name without "/" or ":", or an empty one for none',
    )


class Recipe(Section):
    """A complete recipe."""

    seed: int = Field(0, ge=0, lt=2**31, description="a whole number from 0 up: all that is drawn follows from it")
    seeds: int = Field(
        1,
        ge=1,
        le=50,
        description="a whole number from 1 to 50: networks that main trains, by as many seeds from `seed` on, on the "
        "same split, and whose probabilities are averaged; several are better and take as many times as long",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto, cpu or cuda: what computes; auto is a GPU where there is one"
    )
    reuse: str = Field(
        "auto",
        min_length=1,
        description="auto (take a finished run with the same fingerprint), never, or the id of the run to take from",
    )
    compile: bool = Field(
        False,
        description="true or false: compile the network for training on pictures (torch.compile), which takes about a "
        "minute for each stage and pays in long ones; results are the same but for rounding",
    )
    deterministic: bool = Field(
        False,
        description="true or false: the same seed gives the same weights, bit for bit, each time on a GPU too, which "
        "takes longer; on a CPU it does so anyway",
    )
    stages: Annotated[str, AfterValidator(stage_names)] = Field(
        ALL_STAGES,
        description="all, or those of main that are run, with commas between them, such as "
        "precompute,lr_find,train_head,evaluate",
    )
    data: Data = Data()
    model: Model = Model()
    head: Head = Head()
    augment: Augment = Augment()
    precompute: Precompute = Precompute()
    lr_find: LrFind = LrFind()
    training: TrainingOptions = TrainingOptions()
    train_head: TrainHead = TrainHead()
    fine_tune: FineTune = FineTune()
    resize: ResizeSteps = Field(
        Resize(),
        description="the keys of one step, or a list of steps, each a run of its own, such as [{image_px: 224}, "
        "{image_px: 300}]; resize.1.image_px names a key of the second",
    )
    evaluate: Evaluate = Evaluate()
    sweep: Sweep = Sweep()
    sweep_head: SweepHead = SweepHead()


def flatten(recipe: Recipe) -> dict[str, object]:
    """The recipe by dotted key, in its order: `{"seed": 0, "data.source": "elpv", …}`; steps of `resize`, where it is a
    list, by their number: `{"resize.0.image_px": 224, …}`."""
    flat: dict[str, object] = {}
    for name, value in recipe:
        parts = {name: value} if not isinstance(value, list) else {f"{name}.{n}": one for n, one in enumerate(value)}
        for part, one in parts.items():
            if isinstance(one, Section):
                flat |= {f"{part}.{key}": inner for key, inner in one.model_dump().items()}
            else:
                flat[part] = one
    return flat


def resize_steps(recipe: Recipe) -> list[Resize]:
    """The steps of `resize`, without those of 0 cycles, which are left out."""
    steps = recipe.resize if isinstance(recipe.resize, list) else [recipe.resize]
    return [step for step in steps if step.cycles]


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """The stages of main that the recipe has, in their order."""
    given = STAGE_NAMES if recipe.stages == ALL_STAGES else recipe.stages.split(",")
    has_cycles = {"fine_tune": bool(recipe.fine_tune.cycles), "resize": bool(resize_steps(recipe))}
    return tuple(name for name in STAGE_NAMES if name in given and has_cycles.get(name, True))


def trained_next(recipe: Recipe, trained: Sequence[str]) -> TrainHead | FineTune | Resize:
    """The section of the stage that trains next on a chain of runs of these stages: after train_head that is fine_tune,
    also where the recipe's `stages` name neither it nor resize."""
    if not {"train_head", "fine_tune", "resize"} & {*trained}:
        return recipe.train_head
    stages, steps = stages_of(recipe), resize_steps(recipe)
    is_tuned = "fine_tune" in trained or "resize" in trained
    if not steps or (not is_tuned and ("fine_tune" in stages or "resize" not in stages)):
        return recipe.fine_tune
    return steps[min(list(trained).count("resize"), len(steps) - 1)]


def frozen_in(stage: TrainHead | FineTune | Resize) -> Literal["none", "early", "body"]:
    """The layer groups that the stage freezes."""
    return "none" if isinstance(stage, FineTune) else stage.freeze


def training_settings(recipe: Recipe) -> dict[str, object]:
    """The same without the keys that only sweeps read."""
    return {key: value for key, value in flatten(recipe).items() if not key.startswith("sweep")}


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML that `read_recipe` takes."""
    return write_yaml(recipe.model_dump())
