"""Functions whose module is loaded when they are called: torch, timm and matplotlib take seconds to load, and a command
that finds all of its stages finished needs none of them."""

import importlib
from collections.abc import Callable
from typing import Any


def later(function: str, *given: Any, **options: Any) -> Callable[..., Any]:
    """What calls the function of this full name, such as "stages.work.precompute.work", with what is `given` before its
    own arguments, and with these `options`; its module is loaded then.

    The name is written out where this is called: what a stage's code is, and who may import whom, is read from there.
    """

    def call(*arguments: Any) -> Any:
        module, _, name = function.rpartition(".")
        return getattr(importlib.import_module(module), name)(*given, *arguments, **options)

    return call
