"""The runs before an evaluation, as far as it reads them."""

from types import SimpleNamespace

from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.tracking import RunRef


def upstream(folder, run_id: str, digest: str = "same", precompute: str = "p", **facts):
    """The runs before an evaluation, as far as it reads them, with a network of these facts."""
    own = {"classes": ["cat", "dog"], "image_px": 32, "fit": "crop", "grey": False} | facts
    checkpoint = Checkpoint("test_resnet", own["classes"], 0, 0.0, own["image_px"], own["fit"], own["grey"])
    if not (folder / run_id).exists():
        save_checkpoint(build_network(checkpoint), checkpoint, folder / run_id)
    return SimpleNamespace(
        chain=[RunRef(run_id, "resize", f"fingerprint of {run_id}", precompute)],
        nearest=lambda stage: RunRef(precompute, stage, "", None),
        manifest=SimpleNamespace(digest=digest),
        folder=lambda name, stage: folder / run_id,
    )
