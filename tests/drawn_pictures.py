"""A small set of pictures, drawn for a test."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("circle", "cross", "dot")
PICTURES_PER_CLASS = 24


def draw_pictures(folder: Path, size_px: int = 48, weights: bool = False) -> Path:
    """Pictures of three classes, in colour; gives their table, with weights of 1, 2 and 3 if asked for."""
    lines = ["path,label,weight" if weights else "path,label"]
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        for one in range(PICTURES_PER_CLASS):
            random = np.random.default_rng([number, one])
            pixels = np.full((size_px, size_px + 8, 3), [60 * number, 120, 220 - 60 * number], dtype=np.float64)
            pixels += random.normal(0, 30, pixels.shape)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / label / f"{one}.png")
            lines.append(f"{label}/{one}.png,{label}" + (f",{1 + one % 3}" if weights else ""))
    table = folder / "pictures.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
