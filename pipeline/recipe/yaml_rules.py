"""YAML as recipes are written and read: by one set of rules, so that whatever is written is read back as it was."""

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml

# 1e-3 is a number, as people write it (YAML 1.1 wants 1.0e-3).
_NUMBER = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)
_TEXT = "tag:yaml.org,2002:str"
# What a line of YAML cannot hold, or gives back as another line break, unless it is escaped.
_ESCAPED = re.compile("[^\\x20-\\x7e\\xa0-\\u2027\\u202a-\\ud7ff\\ue000-\\ufefe\\uff00-\\ufffd]")


class _Loader(yaml.SafeLoader):
    """Takes no key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around all text that would be read as something else."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TEXT, text, style='"' if _ESCAPED.search(text) else None)


_Loader.add_implicit_resolver(*_NUMBER)
_Dumper.add_implicit_resolver(*_NUMBER)
_Dumper.add_representer(str, _represent_text)


def read_yaml(text: str, is_text: Callable[[tuple[str, ...]], bool] = lambda path: False) -> Any:
    """The content of `text`. A value at a path of keys for which `is_text` holds stays text, though it may look like a
    number or a date. Raises yaml.YAMLError or ValueError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, (), is_text)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def write_yaml(content: object) -> str:
    """`content` as YAML that `read_yaml` gives back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def write_value(value: object) -> str:
    """A value in one line, as it is given on the command line."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"), default_flow_style=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _keep_text(node: yaml.Node, path: tuple[str, ...], is_text: Callable[[tuple[str, ...]], bool]) -> None:
    if isinstance(node, yaml.ScalarNode) and is_text(path):
        node.tag = _TEXT
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                _keep_text(value, (*path, key.value), is_text)
