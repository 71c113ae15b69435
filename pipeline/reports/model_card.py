"""The model card: how a model was made, how good it is and what its limits are, in Markdown.

After Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.evaluation.evaluation import Evaluation
from pipeline.models.weights import PACKAGES

ELPV_LICENCE = (
    "The pictures are the ELPV dataset, CC BY-NC-SA 4.0 (Deitsch et al. 2019; Buerhop-Lutz et al. 2018; Deitsch et al. "
    "2021). A model trained on them is not for commercial use."
)
# The keys of the recipe that matter most for how the model was made.
SHOWN_SETTINGS = (
    "model.weights", "augment.flip", "train_head.stored_epochs", "fine_tune.cycles", "fine_tune.cycle_len",
    "fine_tune.cycle_mult", "resize.image_px", "seed",
)  # fmt: skip


def model_card(
    name: str,
    pictures: pd.DataFrame,
    evaluation: Evaluation,
    metrics: Mapping[str, float],
    built: Mapping[str, object],
    settings: Mapping[str, object],
    run_id: str,
) -> str:
    """The card. `pictures` counts them by class and split; `metrics` are those of the `evaluation` and of the exported
    model, by name; `built` is how the checkpoint's network was built; `settings` is the flat recipe."""
    source, split, by_class = str(settings["data.source"]), evaluation.split, evaluation.predictions.by_class
    shown = f"{split}/", "temperature", "onnx_", "served_"
    headline = {key: value for key, value in metrics.items() if key.startswith(shown)}
    lines = [
        f"{name} tells {_listed(list(by_class['class']))} apart in a picture.",
        "## Data",
        f"{int(pictures.drop(columns='class').to_numpy().sum()):,} pictures from {source}.",
        _aligned(pictures),
        "## How it was trained",
        "From the head down: a new head on the stored activations of a frozen body, then all layers, earlier ones at "
        "lower rates, then at a larger image size.",
        _bullets({**built, **{key: value for key, value in settings.items() if _is_shown(key)}}),
        *([evaluation.ensemble, _aligned(evaluation.members)] if evaluation.ensemble else []),
        f"The whole recipe is `recipe.yaml` of run `{run_id}`.",
        "## How good it is",
        f"Evaluated on the {split} pictures, which had no part in training"
        + ("." if split == "test" else ", but the best epoch and the rates were chosen by them: the figures flatter."),
        _bullets(headline),
        _aligned(by_class),
        evaluation.verdict.words,
        "Its speed is that of one picture at a time on the CPU of the machine that evaluated it, without decoding.",
        "## Limits",
        "It knows the classes above and no other: a picture of anything else gets one of them too. The figures hold "
        "for pictures taken as those above were; other cameras, light or framing have to be tested anew. "
        + (
            evaluation.predictions.uncalibrated
            or "Its probabilities were calibrated on the validation pictures by one temperature."
        ),
        "## Licence",
        *_licences(source, str(built["backbone"]), str(settings["model.weights"])),
    ]
    return "\n\n".join(lines) + "\n"


def _licences(source: str, backbone: str, weights: str) -> Sequence[str]:
    data = ELPV_LICENCE if source == "elpv" else (
        "The licence of the pictures is not known here: whoever passes the model on has to state it."
    )  # fmt: skip
    if weights == "random":
        return (data,)
    if weights == "auto" and backbone in PACKAGES:
        return data, f"The body's ImageNet weights are {backbone}'s, Apache-2.0."
    return data, f"The body's first weights ({backbone}, {weights}) come with a licence of their own."


def _aligned(table: pd.DataFrame) -> str:
    """A table as a block of text: the registry's page draws Markdown's tables without room between columns."""
    return f"```\n{table.to_string(index=False, float_format='{:.4f}'.format)}\n```"


def _bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(
        f"- {name}: {value:.4g}" if isinstance(value, float) else f"- {name}: {value}" for name, value in facts.items()
    )


def _is_shown(key: str) -> bool:
    """Whether the card shows a key of the recipe; steps of `resize` have numbers in theirs."""
    return re.sub(r"\.\d+\.", ".", key) in SHOWN_SETTINGS


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
