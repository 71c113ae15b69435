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

    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw",
        description="adamw or sgd (with a momentum of 0.9); sgd wants rates ten times higher and more, and sometimes "
        "generalises better in long trainings",
    )
    momentum: Literal["constant", "cycled"] = Field(
        "constant",
        description="constant (0.9) or cycled (from 0.95 down to 0.85 while rates climb, and back while they fall): "
        "cycled helps one cycle at high rates",
    )
    balance: Literal["none", "weights", "sampler"] = Field(
        "none",
        description="none, weights (a class counts the more the rarer it is) or sampler (an epoch has as many pictures "
        "of each class, rare ones over and over): helps to find rare classes, at some cost for the others",
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="auto, bfloat16 or float32: what networks are trained in, their weights apart, which are float32; "
        "auto is bfloat16 on a GPU and on a CPU with matrix units (AMX), which train faster in it",
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        description="a number from 0 (off) up: gradients are scaled down to this norm, such as 1; helps where losses "
        "jump",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=64,
        description="a whole number from 1 (off) to 64: a batch goes through the network in so many parts, whose "
        "gradients add up; helps where a batch does not fit into memory",
    )
    keep: Literal["last", "best_loss", "best_accuracy", "mean_of_cycles", "moving_average"] = Field(
        "last",
        description="last, best_loss or best_accuracy (the epoch that validates best), mean_of_cycles (the mean of the "
        "weights at the end of each cycle) or moving_average (that of the weights after each step): which weights of a "
        "stage are kept; best_… helps where validation gets worse towards the end, mean_of_cycles with several cycles, "
        "moving_average where rates stay high",
    )
    average_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="a number from 0 to below 1, such as 0.99: the share of a moving average that stays at each step",
    )
    snapshots: bool = Field(
        False,
        description="true or false: the networks at the end of each cycle stay with the stage, and evaluate averages "
        "their probabilities if that validates better than the network that is kept; helps with several cycles, and "
        "takes as many times as long to answer",
    )
    early_stop_epochs: int = Field(
        0,
        ge=0,
        description="a whole number from 0 (off) up: a phase ends after so many epochs without a lower validation "
        "loss; saves time, and wants keep: best_…, since the cycle is cut off",
    )
    max_minutes: float = Field(
        0.0,
        ge=0,
        description="a number from 0 (off) up: a stage ends before the epoch that would take its training past so many "
        "minutes; where it ends hangs on the machine",
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


class UnfrozenStage(TrainingStage):
    """The keys of the stages that train the body too."""

    gradual_epochs: int = Field(
        0,
        ge=0,
        description="a whole number from 0 (off) up: so many epochs with the head alone, then so many with the late "
        "group too, come before all is thawed; helps where a high rate would spoil the body",
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a number from 0 (off) to below 1: stochastic depth, how often a block is skipped, up to this rate "
        "for the last one; helps large backbones in long trainings",
    )


class FineTune(UnfrozenStage):
    """All layers, each group at its own rate."""

    lr: GroupRates = "auto"
    cycle_len: CycleLength = 4


class Resize(UnfrozenStage):
    """The same network, at a larger image size."""

    image_px: ImageSize = 384
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
