"""What a checkpoint says of its network: how it is built and trained. Read without building one, or loading timm."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache.store import DESCRIPTION, find_damage
from pipeline.data.decode import Fit
from pipeline.data.deep import Ranges
from pipeline.system.errors import UserError

FACTS = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """How to build a network (`backbone`, `classes`, `hidden`, `dropout`), what it was trained on (`image_px`,
    `fit`, `grey`, and the `ranges` that deep pictures are scaled from), and how far: `epochs` and `steps` over all
    stages. `kept_epochs` are those after which it had these weights, if not after the last; of several they are the
    mean."""

    backbone: str
    classes: list[str]
    hidden: int
    dropout: float
    image_px: int
    fit: Fit
    grey: bool
    epochs: int = 0
    steps: int = 0
    ranges: Ranges = field(default_factory=dict)
    kept_epochs: list[int] = field(default_factory=list)


def read_facts(folder: Path) -> Checkpoint:
    """The facts of the checkpoint in `folder`; UserError if one of its files is damaged."""
    damage = find_damage(folder, contents=True) if (folder / DESCRIPTION).exists() else ""
    if damage:
        raise UserError(f"The checkpoint in {folder} is damaged ({damage}); run the stage that made it again.")
    return Checkpoint(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
