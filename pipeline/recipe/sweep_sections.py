"""The sections of a recipe on how it is tuned: which keys vary, in which ranges, and by which objective."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from pipeline.recipe.fields import Count, Section


class IntRange(Section):
    """Whole numbers, both ends among them."""

    type: Literal["int"]
    low: int
    high: int


class UniformRange(Section):
    """Numbers, each as likely as any other; `points` of them, evenly spaced, on a grid."""

    type: Literal["uniform"]
    low: float
    high: float
    points: int = Field(3, ge=2, le=100)


class LogUniformRange(Section):
    """Numbers above 0, each order of magnitude as likely as any other; `points` of them on a grid."""

    type: Literal["log_uniform"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    points: int = Field(3, ge=2, le=100)


class Choice(Section):
    """One of these values."""

    type: Literal["choice"]
    of: list[bool | int | float | str] = Field(min_length=1)


Range: TypeAlias = Annotated[IntRange | UniformRange | LogUniformRange | Choice, Field(discriminator="type")]
Objective: TypeAlias = Literal["valid/accuracy", "valid/macro_f1", "valid/loss", "train/seconds"]
DEFAULT_SPACE: dict[str, Range] = {
    "fine_tune.cycle_len": IntRange(type="int", low=2, high=6),
    "fine_tune.cycles": IntRange(type="int", low=1, high=2),
    "fine_tune.lr": LogUniformRange(type="log_uniform", low=1e-5, high=1e-2),
    "fine_tune.lr_ratio": LogUniformRange(type="log_uniform", low=1.0, high=30.0),
    "fine_tune.weight_decay": LogUniformRange(type="log_uniform", low=1e-4, high=0.3),
    "augment.strength": UniformRange(type="uniform", low=0.0, high=2.0),
}


class Sweep(Section):
    """Many trials of the recipe, to find a better one."""

    trials: Count = Field(
        30, description="a whole number from 1 up: trials in all, those of earlier commands among them"
    )
    workers: Count = Field(
        1, description="a whole number from 1 up: trials that this machine trains at once, each on a GPU of its own"
    )
    gpus_per_trial: Count = Field(
        1,
        description="a whole number from 1 up: GPUs that train each trial together, by a process each; without GPUs as "
        "many processes share the cores",
    )
    storage: str = Field(
        "",
        description="empty (sweeps.db in the working folder), or where the study is kept, such as "
        "postgresql://user:password@host/database, which workers of any machine can share",
    )
    name: str = Field(
        "auto",
        min_length=1,
        description="auto (one study for each recipe, space and objective), or the name of the study",
    )
    objective: Objective | list[Objective] = Field(
        "valid/accuracy",
        description="valid/accuracy, valid/macro_f1, valid/loss or train/seconds, or a list of two of them, which are "
        "traded off against one another",
    )
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = Field(
        "tpe", description="tpe, gp, cmaes, random or grid: how the next trial is chosen"
    )
    pruner: Literal["hyperband", "median", "none"] = Field(
        "hyperband", description="hyperband, median or none: how hopeless trials are ended early"
    )
    seeds: Count = Field(3, description="a whole number from 1 up: how often the best recipe is trained in the end")
    heartbeat_seconds: Count = Field(
        20,
        description="a whole number from 1 up: how often a worker shows that it lives; after three times that, its "
        "trial is given to another",
    )
    space: dict[str, Range] = Field(
        DEFAULT_SPACE,
        min_length=1,
        description="a range for each key that may vary: {type: int, low: 1, high: 3}, {type: uniform, low: 0, "
        "high: 1}, {type: log_uniform, low: 1e-5, high: 1e-2} or {type: choice, of: [none, sideways]}",
    )

    @property
    def objectives(self) -> list[Objective]:
        """The objective, or both."""
        return self.objective if isinstance(self.objective, list) else [self.objective]


# Which key of a recipe each range of `SweepHead` is for.
HEAD_KEYS = {
    "lr": "train_head.lr",
    "weight_decay": "train_head.weight_decay",
    "dropout": "head.dropout",
    "label_smoothing": "train_head.label_smoothing",
    "stored_epochs": "train_head.stored_epochs",
}


class SweepHead(Section):
    """Many heads at once on stored activations, to find a better setting of train_head and of head.dropout."""

    settings: Count = Field(
        64, description="a whole number from 1 up: settings that are compared, the recipe's own among them"
    )
    seeds: Count = Field(4, description="a whole number from 1 up: heads that are trained with each setting")
    finder_seeds: Count = Field(24, description="a whole number from 1 up: seeds of the LR finder's band")
    lr: Range = Field(
        LogUniformRange(type="log_uniform", low=3e-5, high=3e-2),
        description="a range of rates, such as {type: log_uniform, low: 3e-5, high: 3e-2}",
    )
    weight_decay: Range = Field(
        LogUniformRange(type="log_uniform", low=1e-3, high=0.5),
        description="a range, such as {type: log_uniform, low: 1e-3, high: 0.5}",
    )
    dropout: Range = Field(
        Choice(type="choice", of=[0.0, 0.25, 0.5, 0.75]),
        description="a range, best a choice of few, such as {type: choice, of: [0.0, 0.25, 0.5]}, since heads that "
        "share the seed and the dropout share the work",
    )
    label_smoothing: Range = Field(
        Choice(type="choice", of=[0.0, 0.1]), description="a range, such as {type: choice, of: [0.0, 0.1]}"
    )
    stored_epochs: Range = Field(
        Choice(type="choice", of=[3, 5, 10]),
        description="a range of whole numbers, such as {type: choice, of: [3, 5, 10]}",
    )
