"""What every test of a figure looks at."""

import io
import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image


def in_legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def check(figure: Figure) -> Image.Image:
    """The figure as a picture: all that it holds is finite, and drawing it raises no warning."""
    for axes in figure.axes:
        for line in axes.lines:
            assert np.isfinite(np.asarray(line.get_xydata(), float)).all()
        for collection in axes.collections:
            assert np.isfinite(np.asarray(collection.get_offsets(), float)).all()
        for image in axes.images:
            assert np.isfinite(np.asarray(image.get_array(), float)).all()
        for text in axes.texts:
            assert np.isfinite(text.get_position()).all()
        assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()
    file = io.BytesIO()
    with warnings.catch_warnings(action="error"):
        figure.savefig(file, format="png", dpi=30)
    picture = Image.open(file).convert("L")
    assert picture.getextrema()[0] < picture.getextrema()[1], "nothing was drawn"
    return picture
