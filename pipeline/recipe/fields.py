"""What a recipe is made of: sections, the kinds of values that several of them take, and the names of layer groups.

A field's description says what the key takes, and is what a user reads after a mistake and in `--help`.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

# The layer groups, from the input up, and those that each value of `freeze` keeps frozen.
GROUPS = ("early", "late", "head")
Frozen: TypeAlias = Literal["none", "early", "body"]
FROZEN_GROUPS = {"none": (), "early": ("early",), "body": ("early", "late")}
# The stages of main, in their order.
STAGE_NAMES = ("precompute", "lr_find", "train_head", "fine_tune", "resize", "evaluate")
ALL_STAGES = "all"
Share = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="a share above 0, up to 1: of each class's training pictures; a smaller part lies "
        "within a larger one",
    ),
]
HeldOutShare = Annotated[
    float,
    Field(
        ge=0, lt=0.9, description="a share of the pictures from 0 to below 0.9: held out where they do not come split"
    ),
]
Count = Annotated[int, Field(ge=1, description="a whole number from 1 up")]
CycleLength = Annotated[int, Field(ge=1, description="a whole number from 1 up: epochs of the first cycle")]
CycleFactor = Annotated[
    int,
    Field(
        ge=1,
        description="a whole number from 1 up: each cycle is so many times as long as the one "
        "before it, so that 3 cycles from 1 epoch on are, by 2, of 1 + 2 + 4 epochs",
    ),
]
BatchSize = Annotated[int, Field(ge=2, description="a whole number from 2 up: pictures of a batch")]
ImageSize = Annotated[
    int, Field(ge=16, le=2048, description="a whole number of pixels from 16 to 2048: the side of the square pictures")
]
Rate = Annotated[float, Field(gt=0, lt=1e3)]
OneRate = Annotated[
    Literal["auto"] | Rate,
    Field(description="auto (what the LR finder suggested) or a rate above 0 such as 0.002"),
]
GroupRates = Annotated[
    Literal["auto"] | Rate | list[Rate],
    Field(
        description="auto (what the LR finder suggested), a rate above 0 for the head such as 0.002, or a list "
        "of three rates, early to head, such as [0.00002, 0.0002, 0.002]"
    ),
]
LearningRateRatio = Annotated[
    float, Field(ge=1, le=1e4, description="a number from 1 up: each earlier layer group learns so many times slower")
]
WeightDecay = Annotated[
    float, Field(ge=0, lt=10, description="a number from 0 to below 10: how strongly AdamW draws weights to 0")
]
BatchNorm = Annotated[
    Literal["fixed", "batch"],
    Field(
        description="fixed (the body, and a head once trained, keep their running statistics, which suits small sets) "
        "or batch (they normalise by each batch and learn new ones, which wants large sets)"
    ),
]
Smoothing = Annotated[
    float, Field(ge=0, lt=1, description="a number from 0 to below 1: the share of a label that all classes get alike")
]
# HEIC, which needs a package, is among them, so that it is set aside with a sentence and not passed over.
PICTURE_ENDINGS = [
    ".jpg", ".jpeg", ".png", ".apng", ".gif", ".bmp", ".webp", ".avif", ".heic", ".heif", ".jp2", ".tif", ".tiff",
    ".ppm", ".pgm",
]  # fmt: skip


def stage_names(text: str) -> str:
    """Names of stages with commas between them, without blanks; ValueError for any other name, or one given twice."""
    names = [name.strip() for name in text.split(",")]
    if text != ALL_STAGES and (not set(names) <= set(STAGE_NAMES) or len(set(names)) < len(names)):
        raise ValueError(f"choose from {', '.join(STAGE_NAMES)}")
    return ",".join(names)


def folds(number: int) -> int:
    """The number of parts in a cross-validation; ValueError for 1, which leaves nothing to train on."""
    if number == 1:
        raise ValueError("give 0 or a whole number from 2 up")
    return number


def timm_name(name: str) -> str:
    """The name of a backbone without that of timm's account on the hub, as in `hf-hub:timm/resnet18.a1_in1k`."""
    owner, _, own = name.rpartition("/")
    return own if owner.rpartition(":")[2] == "timm" else name


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, "3" is not 3, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
