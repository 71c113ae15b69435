"""Computing the same bits each time on a GPU, where torch by itself takes whatever is fastest; a CPU does so anyway."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from pipeline.system.errors import UserError
from pipeline.system.machine import CUBLAS_SETTING, fix_cublas

ADVICE = "set deterministic to false, or choose another model.backbone"


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """A block in which a GPU gives the same result each time: cuBLAS, cuDNN and torch's own operations by forms that
    depend on no order of threads, none of them chosen by a try of its speed. On a CPU it changes nothing.

    UserError for an operation without such a form; see `torch.use_deterministic_algorithms`.
    """
    if device.type != "cuda":
        yield
        return
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        fix_cublas()
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with _MaximumPools():
            yield
    except RuntimeError as error:
        raise _explained(error) from error
    finally:
        torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
        cudnn.deterministic, cudnn.benchmark = of_cudnn


def _explained(error: RuntimeError) -> Exception:
    """The error, or a UserError if the GPU was asked for what it cannot do the same each time."""
    text = str(error)
    operation, known, _ = text.partition(" does not have a deterministic implementation")
    if known:
        return UserError(f"deterministic is true, but on a GPU {operation} has no form that is; {ADVICE}.")
    if text.startswith("Deterministic behavior was enabled") and CUBLAS_SETTING[0] in text:
        return UserError(
            "deterministic is true, but the GPU was used before it was known to be; start Python with "
            f"{'='.join(CUBLAS_SETTING)}."
        )
    return error


class _MaximumPools(TorchFunctionMode):
    """A block in which maximum pools of whole maps, such as stand before each head, are taken as a plain maximum: torch
    has no deterministic gradient of its adaptive ones. Equal maxima then share the gradient."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `function`, or takes the maximum in its place."""
        if function is F.adaptive_max_pool2d and args[1:] in ((1,), ((1, 1),)) and not any((kwargs or {}).values()):
            maps: Tensor = args[0]
            return maps.amax((-2, -1), keepdim=True)
        return function(*args, **(kwargs or {}))
