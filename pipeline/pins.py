"""The versions that a served model needs, read from the one place where versions are pinned."""

from collections.abc import Sequence

from pipeline.fingerprint import PROJECT

SERVED_MODEL = PROJECT / "pipeline" / "serving.py"
SERVING = ("mlflow", "filelock", "numpy", "pandas", "pillow", "rich", "safetensors", "timm", "torch", "torchvision")


def pinned(names: Sequence[str] = SERVING) -> list[str]:
    """The lines of requirements.txt, such as `torch==2.14.1`, for these packages."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").split()
    by_name = {line.split("==")[0]: line for line in lines}
    return [by_name[name] for name in names]
