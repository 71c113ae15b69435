"""The recipe: every choice of a run, typed, with one section per stage.

A field's description says what the key takes, and is what a user reads after a mistake and in `--help`.
Reading and overriding are in `recipe_file`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.recipe.fields import (
    ALL_STAGES,
    PICTURE_ENDINGS,
    STAGE_NAMES,
    BatchNorm,
    BatchSize,
    HeldOutShare,
    ImageSize,
    LearningRateRatio,
    Rate,
    Section,
    WeightDecay,
    stage_names,
    timm_name,
)
from pipeline.recipe.sweep_sections import Sweep, SweepHead
from pipeline.recipe.training_sections import FineTune, Resize, ResizeSteps, TrainHead, TrainingOptions
from pipeline.recipe.yaml_rules import write_yaml
from pipeline.system.text import plain_name


class Data(Section):
    """Which pictures, and how they are split where they do not come split."""

    source: str = Field(
        "elpv",
        min_length=1,
        description="elpv (the packaged solar cells), a folder of class folders, a folder with train/, "
        "valid/ or val/, and maybe test/, or a table (.csv, .tsv, .parquet) with the columns path and label, and maybe "
        "split, group and weight",
    )
    corrections: str = Field(
        "",
        description="empty, or a corrections.csv that report.html of evaluate made: pictures of a hash get its label, "
        "or are dropped",
    )
    split_seed: Literal["auto"] | int = Field(
        "auto", description="auto (the recipe's seed) or a whole number: which pictures are held out"
    )
    valid_fraction: HeldOutShare = 0.15
    test_fraction: HeldOutShare = 0.25
    fit: Literal["crop", "pad", "squish"] = Field(
        "crop", description="crop, pad or squish: how a picture is made square"
    )
    range: Literal["auto", "container"] | Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        "auto",
        description="auto (deep pictures, of 16 or 32 bits or floats, are scaled to 8 bits from the range of the "
        "training pictures), container (from all that their files can hold), or two numbers such as [0, 4095] that "
        "become black and white",
    )
    extensions: list[str] = Field(
        PICTURE_ENDINGS,
        description="a list of file endings such as [.jpg, .png]; other files of a folder are set aside",
    )
    max_bad: float = Field(
        0.01,
        ge=0,
        le=1,
        description="a share from 0 to 1: with more pictures than that that cannot be used the run stops",
    )
    duplicates: Literal["move", "stop"] = Field(
        "move",
        description="move (copies of a picture that come in two splits all go to the first of train, valid and test, "
        "and what lies in two classes is set aside) or stop (the run does)",
    )
    decoder: Literal["auto", "pillow", "nvjpeg"] = Field(
        "auto",
        description="auto (nvjpeg where a GPU can), pillow, or nvjpeg (JPEGs by the GPU, whose pixels differ a little)",
    )
    max_store_gib: float = Field(
        20.0,
        ge=0,
        description="a number of GiB from 0 up: pictures whose decoded pixels would take more disk are decoded anew "
        "whenever they are needed, and precompute stops where activations in front of the late group would",
    )
    max_logged_gib: float = Field(
        2.0,
        ge=0,
        description="a number of GiB from 0 up: decoded pixels that take no more are kept among the files of "
        "precompute's run, for machines that have not the pictures",
    )


class Model(Section):
    """The body: a timm backbone without its classifier."""

    backbone: Annotated[str, AfterValidator(timm_name)] = Field(
        "tf_efficientnet_lite0",
        min_length=1,
        description="the name of a timm backbone, or of one on the hub, such as hf-hub:timm/resnet18.a1_in1k",
    )
    weights: str = Field(
        "auto",
        min_length=1,
        description="auto (from an installed package, else from timm's hub), hub, random, or the path of a "
        ".safetensors or .pth file",
    )


class Head(Section):
    """The new classifier on top of the body."""

    hidden: int = Field(512, ge=0, le=8192, description="a whole number from 0 (a linear head) up: its hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="a number from 0 to below 1, halved before the hidden layer")


class Augment(Section):
    """How training pictures are varied, each picture in its own way; validation pictures never are."""

    flip: Literal["none", "sideways", "all"] = Field(
        "sideways",
        description="none, sideways (left and right may be swapped), or all (the eight flips and quarter turns): "
        "choose what keeps your pictures real",
    )
    rotate_degrees: float = Field(10.0, ge=0, le=180, description="degrees from 0 to 180, either way")
    zoom: float = Field(1.1, ge=1, le=4, description="a number from 1 (none) to 4: the largest magnification")
    crop: float = Field(
        0.9, gt=0.1, le=1, description="a share from 0.1 to 1 (none): the smallest part of a side that a crop keeps"
    )
    lighting: float = Field(
        0.2, ge=0, lt=1, description="a number from 0 (none) to below 1: how far brightness and contrast vary"
    )
    strength: float = Field(
        1.0, ge=0, le=3, description="a number from 0 (none) to 3: rotation, zoom, crop and lighting, times this"
    )
    probability: float = Field(
        0.75, ge=0, le=1, description="a number from 0 to 1: how often a warp, or lighting, acts"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="a number from 0 (off) to 10: alpha of the share in which pictures are blended; train/loss "
        "is then the cross-entropy with both classes",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="a number from 0 (off) to 10: alpha of the share of a box cut from another picture",
    )
    perspective: float = Field(
        0.0,
        ge=0,
        le=0.15,
        description="a number from 0 (off) to 0.15: how far pictures are tilted away, times the strength; helps where "
        "things are seen from many sides",
    )
    erase: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a number from 0 (off) to 1: how often a box of a picture is blanked; helps where parts may be "
        "hidden",
    )
    trivial: bool = Field(
        False,
        description="true or false: TrivialAugment, one of 14 operations at a random strength for each picture, shared "
        "by some of its batch; helps long trainings of natural photographs",
    )


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
    """The range test."""

    batch_size: BatchSize = 32
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
    lr_ratio: LearningRateRatio = 3.0
    batchnorm: BatchNorm = "fixed"
    weight_decay: WeightDecay = 0.01


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


def training_settings(recipe: Recipe) -> dict[str, object]:
    """The same without the keys that only sweeps read."""
    return {key: value for key, value in flatten(recipe).items() if not key.startswith("sweep")}


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML that `read_recipe` takes."""
    return write_yaml(recipe.model_dump())
