"""Predicts all pictures of a folder or a table: one table, in which a picture that cannot be opened is a row too."""

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.readers.listing import Listing
from pipeline.data.remote.addresses import without_secrets
from pipeline.models.classifier import Classifier, Squares, answer_table, load_classifier
from pipeline.ranks.exchange import gather
from pipeline.ranks.folders import provide
from pipeline.ranks.team import deal, processes, together
from pipeline.system.console import track
from pipeline.system.device import choose_device
from pipeline.system.errors import UserError
from pipeline.system.metric_names import metric_names
from pipeline.system.parallel import in_parallel

UNREADABLE = "cannot be opened"


def predict_pictures(
    classifier: Classifier, root: Path, pictures: Sequence[Path], batch_size: int, with_tta: bool = False
) -> pd.DataFrame:
    """A row for each picture: `path` below `root`, `label`, `confidence`, a column `probability/<class>` each, and
    `error`, which is empty for those that could be opened; the others have no label and no numbers. UserError if the
    model cannot answer `with_tta`."""
    errors: list[str] = []

    def decode(path: Path) -> Squares | str:
        try:
            if path.is_dir():  # it is listed because it cannot be read, which this says
                next(path.iterdir(), None)
            return classifier.decode(path.read_bytes())
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever their format's parser does
            return " ".join(str(error).split()) or type(error).__name__

    def good() -> Iterator[Squares]:
        decoded = track(in_parallel(decode, pictures), "predicting", len(pictures), "images")
        for one in decoded:
            errors.append(one if isinstance(one, str) else "")
            if not isinstance(one, str):
                yield one

    probabilities = classifier.probabilities(good(), batch_size, with_tta)
    answers = answer_table(classifier.checkpoint.classes, probabilities)
    answers.index = pd.Index(np.flatnonzero([error == "" for error in errors]))
    table = answers.reindex(range(len(pictures)))
    table.insert(0, "path", [_below(root, path) for path in pictures])
    return table.assign(error=errors)


def predict_together(
    folder: Path, classifier: Classifier, root: Path, pictures: Sequence[Path], batch_size: int, with_tta: bool = False
) -> pd.DataFrame:
    """The result of `predict_pictures` by the classifier in `folder`, of which helpers do their part, if there are
    any; UserError if the pictures are not on the machine of one."""
    how = batch_size, with_tta
    if processes() == 1 or len(pictures) < processes():
        return predict_pictures(classifier, root, pictures, *how)
    with together(predict_share, folder, classifier.device.type, root, pictures, how):
        provide(folder)
        own = predict_pictures(classifier, root, pictures[deal().stretch(len(pictures))], *how)
        table: pd.DataFrame = pd.concat(gather(own), ignore_index=True)
        return table


def predict_share(folder: Path, device: str, root: Path, pictures: Sequence[Path], how: tuple[int, bool]) -> None:
    """A helper's part of the pictures, sent to the leader."""
    classifier = load_classifier(provide(folder), choose_device(device), one_by_one=False)
    if not root.is_dir():
        raise UserError(
            f"The pictures are in {root}, which is not on {socket.gethostname()}; have them at the same place on every "
            "machine."
        )
    gather(predict_pictures(classifier, root, pictures[deal().stretch(len(pictures))], *how))


def with_addresses(table: pd.DataFrame, listing: Listing) -> pd.DataFrame:
    """The table with the addresses of fetched pictures in the place of their paths, and why some could not be
    fetched; that of pictures on disk as it is."""
    if not listing.addresses:
        return table
    errors = [listing.missing.get(path, error) for path, error in zip(listing.paths, table["error"], strict=True)]
    addresses = [without_secrets(listing.addresses[path]) for path in listing.paths]
    return table.assign(path=addresses, error=errors)


def label_counts(table: pd.DataFrame) -> pd.DataFrame:
    """`label` and `pictures`: how many got each label, the most frequent first, and last how many got none."""
    counts = table["label"].value_counts().rename_axis("label").reset_index(name="pictures")
    unreadable = pd.DataFrame({"label": [UNREADABLE], "pictures": [int((table["error"] != "").sum())]})
    return pd.concat([counts, unreadable], ignore_index=True)


def count_metrics(counts: pd.DataFrame, classes: Sequence[str] = ()) -> dict[str, float]:
    """`label_counts` as metrics, in their order: `pictures/<label>`, by `metric_names` of all `classes`."""
    labels = list(counts["label"][:-1])
    every = list(dict.fromkeys([*classes, *labels]))
    names = dict(zip(every, metric_names("pictures", every, [UNREADABLE]), strict=True))
    named = [*(names[label] for label in labels), f"pictures/{UNREADABLE}"]
    return dict(zip(named, counts["pictures"].astype(float), strict=True))


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)).encode(errors="surrogateescape").decode(errors="backslashreplace")
