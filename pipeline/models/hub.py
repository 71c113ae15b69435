"""Weights from timm's hub: taken from the hub's cache on this machine, or fetched once, and named by their content."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch.hub import download_url_to_file, get_dir

from pipeline.cache.hashing import file_checksum
from pipeline.models.weights import Weights
from pipeline.system.errors import UserError

# The hub's own client tries again for a minute where there is no network.
SECONDS_TO_ANSWER = 4.0
DEFAULT_NAME = "pytorch_model.bin"


def fetch_weights(backbone: str, weights: Weights) -> Weights:
    """`weights`, and if they are of the hub, with the file that they are in and its content in their identity.

    UserError, within seconds, if they are not on this machine and the hub cannot be reached.
    """
    return _fetch(backbone, weights) if weights.kind == "hub" and weights.path is None else weights


@cache
def _fetch(backbone: str, weights: Weights) -> Weights:
    try:
        path = _find_or_fetch(backbone)
    except UserError:
        raise
    except Exception as error:  # the hub's client has a dozen classes of errors
        raise UserError(
            f"The weights of {backbone} cannot be had from timm's hub ({_first_line(error)}); "
            "check the network, or set model.weights to a file."
        ) from None
    return replace(weights, path=path, identity=f"{weights.identity}:sha256:{file_checksum(path)}")


def _find_or_fetch(backbone: str) -> Path:
    """The file of the hub's weights; errors of the hub's client and of the network are raised."""
    facts = _facts(backbone)
    if not facts.hf_hub_id:
        return _find_or_fetch_url(facts.url)  # type: ignore[arg-type]
    repository, _, revision = facts.hf_hub_id.partition("@")
    names = list(_names(facts.hf_hub_filename or DEFAULT_NAME))
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    _require_answer(huggingface_hub.constants.ENDPOINT)
    for name in names[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repository, names[-1], revision=revision or None))


def _facts(backbone: str) -> PretrainedCfg:
    """What timm knows of a backbone's weights, with an address in it; UserError if there is none."""
    facts = get_pretrained_cfg(backbone)
    if facts is None or not (facts.hf_hub_id or facts.url):
        raise UserError(f"timm has no weights of {backbone}; set model.weights to random or to a file of weights.")
    return facts


def _names(name: str) -> Iterator[str]:
    """Under which names weights are looked for, first those that are no pickle."""
    if name == DEFAULT_NAME:
        yield "model.safetensors"
    elif name.endswith(".bin"):
        yield name.removesuffix(".bin") + ".safetensors"
    yield name


def _find_or_fetch_url(url: str | tuple[str, str]) -> Path:
    url, name = (url, url.rpartition("/")[2]) if isinstance(url, str) else url
    path = Path(get_dir()) / "checkpoints" / name
    if not path.exists():
        _require_answer(url)
        os.makedirs(path.parent, exist_ok=True)
        download_url_to_file(url, str(path), progress=False)
    return path


def _require_answer(url: str) -> None:
    """Raises an error of the network, within seconds, if nobody answers there."""
    huggingface_hub.get_session().head(url, timeout=SECONDS_TO_ANSWER)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
