"""The sections of the recipe on training: what all training stages share, and the keys of each."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from pipeline.recipe.fields import (
    BatchNorm,
    BatchSize,
    CycleFactor,
    CycleLength,
    GroupRates,
    ImageSize,
    LearningRateRatio,
    OneRate,
    Section,
    Share,
    Smoothing,
    WeightDecay,
)


class TrainingOptions(Section):
    """What all training stages share; each option is off by default."""

    keep: Literal["last", "best_loss", "best_accuracy", "mean_of_cycles"] = Field(
        "last",
        description="last, best_loss or best_accuracy (the epoch that validates best), or mean_of_cycles (the mean of "
        "the weights at the end of each cycle): which weights of a stage are kept; best_… helps where validation gets "
        "worse towards the end, mean_of_cycles with several cycles",
    )


class TrainingStage(Section):
    """The keys that each training stage has."""

    fraction: Share = 1.0
    batch_size: BatchSize = 32
    lr_ratio: LearningRateRatio = 3.0
    batchnorm: BatchNorm = "fixed"
    weight_decay: WeightDecay = 0.01
    label_smoothing: Smoothing = 0.1
    cycles: int = Field(1, ge=0, description="a whole number from 0 (the stage is left out) up")
    cycle_len: CycleLength = 1
    cycle_mult: CycleFactor = 1
    warm_up: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="a share from 0 to below 1: of the first cycle, in which the rates climb; with one cycle "
        "it is fastai's one-cycle policy",
    )


class TrainHead(TrainingStage):
    """The head, and the late group where it is thawed: first on stored activations, then with augmentation on."""

    freeze: Literal["early", "body"] = Field(
        "body", description="early (the early layer group stays frozen) or body (all but the head does)"
    )
    lr: OneRate = "auto"
    stored_epochs: int = Field(10, ge=0, description="a whole number from 0 up: epochs on stored activations")
    cycles: int = Field(0, ge=0, description="a whole number from 0 up: cycles with augmentation on")


class FineTune(TrainingStage):
    """All layers, each group at its own rate."""

    lr: GroupRates = "auto"
    cycle_len: CycleLength = 4


class Resize(TrainingStage):
    """The same network, at a larger image size."""

    image_px: ImageSize = 256
    freeze: Literal["none", "early", "body"] = Field(
        "early", description="none, early (the early layer group stays frozen) or body (all but the head does)"
    )
    lr: GroupRates = Field(
        "auto",
        description="auto (the rate that the upstream run trained with), a rate above 0 for the head, or a list of "
        "three rates, early to head",
    )
    cycle_len: CycleLength = 4


# Which of the two a value of `resize` is; pydantic puts it into the place of what is wrong.
ONE_STEP, STEPS = "one step", "steps"


def _kind(value: Any) -> str:
    return STEPS if isinstance(value, list) else ONE_STEP


ResizeSteps: TypeAlias = Annotated[
    Annotated[Resize, Tag(ONE_STEP)] | Annotated[list[Resize], Tag(STEPS)], Discriminator(_kind)
]
