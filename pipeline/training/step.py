"""One optimizer step: eager, or captured as a CUDA graph and replayed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.models.network import Network
from pipeline.ranks.deal import ALONE, Deal
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.console import say
from pipeline.system.device import Precision, mixed_precision, precision_of, training_precision
from pipeline.training.compiled import CompiledNetwork
from pipeline.training.joint.forward import SharedForward
from pipeline.training.on_cpu.depthwise import DepthwiseGradients
from pipeline.training.on_cpu.folded import FoldedStatistics
from pipeline.training.optim import AS_EVER

# Steps of a shape that run eagerly before it is captured: libraries choose their kernels and the optimizer builds its
# state in them.
EAGER_STEPS = 3
# Shapes that are captured; further ones run eagerly, since each graph keeps memory of its own.
MOST_GRAPHS = 4


class StepLoss(NamedTuple):
    """A batch's mean cross-entropy before a step, without label smoothing, still on the device: `plain`, with equal
    weights for all pictures, and `weighted`, with those that they have in training."""

    plain: Tensor
    weighted: Tensor


Forward: TypeAlias = Callable[[Tensor], Tensor] | SharedForward
Step: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], StepLoss]


def steps_of(
    module: nn.Module,
    optimizer: Optimizer,
    label_smoothing: float = 0.0,
    is_compiled: bool = False,
    options: TrainingOptions = AS_EVER,
    deal: Deal = ALONE,
) -> Step:
    """A function that takes one step of descent on a batch: `step(inputs, targets, weights)`; see `train_step`. Where
    several processes share it by the `deal`, `inputs` are those of this one.

    On a GPU the step is captured once for each shape of batch and then replayed, which spares the processor the
    launching of some thousand kernels. The module's modes and frozen parameters must stay as they are. A Network can be
    compiled first; see `CompiledNetwork`.
    """
    device = next(module.parameters()).device
    options = options.model_copy(update={"precision": step_precision(module, options.precision)})
    compiled = CompiledNetwork(module) if is_compiled and isinstance(module, Network) else None
    forward: Forward = SharedForward(module, deal, compiled) if deal.is_shared else compiled or module
    if device.type == "cuda":
        return CapturedStep(forward, optimizer, label_smoothing, device, options)

    convolves = compiled is None and any(isinstance(part, nn.Conv2d) for part in module.modules())
    # The last one sees a convolution first.
    faster = (DepthwiseGradients(), FoldedStatistics(module)) if convolves else ()

    def step(inputs: Tensor, targets: Tensor, weights: Tensor | None) -> StepLoss:
        with ExitStack() as block:
            for mode in faster:
                block.enter_context(mode)
            return train_step(forward, optimizer, inputs, targets, label_smoothing, weights, options)

    return step


def step_precision(module: nn.Module, asked: Literal["auto"] | Precision) -> Precision:
    """What `module` is trained in, if the recipe asks for this: on a CPU a head alone in float32, since there is little
    to compute in it."""
    device = next(module.parameters()).device
    has_body = any(isinstance(part, Network) for part in module.modules())
    return training_precision(asked, device) if has_body or device.type == "cuda" else precision_of(device)


def train_step(
    forward: Forward,
    optimizer: Optimizer,
    inputs: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    options: TrainingOptions = AS_EVER,
) -> StepLoss:
    """One step of descent, on the mean cross-entropy of the logits of `forward` or, with `weights` (N), on the weighted
    mean. With `accumulate` of the options it goes through the batch in parts of at least two pictures."""
    optimizer.zero_grad(set_to_none=True)
    parts = max(1, min(options.accumulate, len(targets) // 2))
    found = []
    for part in zip(_passes(forward, inputs, len(targets), parts), *_split_each(targets, weights, parts), strict=True):
        with mixed_precision(inputs.device, options.precision):
            logits = part[0]()
        logits = logits.float()
        loss = _cross_entropy(logits, part[1], part[2], label_smoothing)
        if parts > 1:
            loss = loss * (len(logits) / len(targets) if weights is None else part[2].sum() / weights.sum())
        loss.backward()  # type: ignore[no-untyped-call]
        found.append(logits.detach())
    if isinstance(forward, SharedForward):
        forward.sum_gradients(optimizer)
    if options.clip_norm:
        nn.utils.clip_grad_norm_(
            [one for group in optimizer.param_groups for one in group["params"]], options.clip_norm
        )
    optimizer.step()
    logits = torch.cat(found) if parts > 1 else found[0]
    weighted = _cross_entropy(logits, targets, weights) if label_smoothing or parts > 1 else loss.detach()
    return StepLoss(weighted if weights is None else _cross_entropy(logits, targets), weighted)


def _passes(forward: Forward, inputs: Tensor, count: int, parts: int) -> Sequence[Callable[[], Tensor]]:
    """Functions that give the logits of a batch of `count`, part by part."""
    if isinstance(forward, SharedForward):
        return forward.parts(inputs, count)
    return [partial(forward, part) for part in _split(inputs, parts)]


def _split_each(targets: Tensor, weights: Tensor | None, parts: int) -> Iterator[Sequence[Any]]:
    return (_split(tensor, parts) for tensor in (targets, weights))


def _split(tensor: Tensor | None, parts: int) -> Sequence[Any]:
    """A batch in so many parts of nearly the same size."""
    return (tensor,) * parts if tensor is None or parts == 1 else tensor.tensor_split(parts)


class _Graph(NamedTuple):
    """A captured step: what it reads, and the losses that it writes."""

    graph: torch.cuda.CUDAGraph
    batch: list[Tensor]
    losses: Tensor


class CapturedStep:
    """`train_step` as CUDA graphs, one for each shape of batch; eager, with a sentence, where capturing fails.

    The optimizer's rates become tensors on the device, which `set_rates` fills: a graph reads them anew at each replay;
    momentum is a number of the processor's, so that steps are eager where it is cycled.
    """

    def __init__(
        self,
        forward: Forward,
        optimizer: Optimizer,
        label_smoothing: float,
        device: torch.device,
        options: TrainingOptions = AS_EVER,
    ) -> None:
        self._forward, self._optimizer, self._label_smoothing = forward, optimizer, label_smoothing
        self._options = options
        self._stream = _stream_beside(device)
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        self._eager_steps: dict[tuple[object, ...], int] = {}
        self._can_capture = True
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
            group["capturable"] = True
        if any(group.get("is_cycled") for group in optimizer.param_groups):
            self._can_capture = False
            say("  training steps are launched one operation at a time: momentum that is cycled cannot be captured")

    def __call__(self, inputs: Tensor, targets: Tensor, weights: Tensor | None) -> StepLoss:
        """Take one step on a batch."""
        batch = [inputs, targets] if weights is None else [inputs, targets, weights]
        shape = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch)
        if shape in self._graphs:
            return self._replay(self._graphs[shape], batch)
        eager_steps = self._eager_steps.get(shape, 0)
        if self._can_capture and eager_steps >= EAGER_STEPS and len(self._graphs) < MOST_GRAPHS:
            captured = self._capture(batch)
            if captured is not None:
                self._graphs[shape] = captured
                return self._replay(captured, batch)
        self._eager_steps[shape] = eager_steps + 1
        return self._step_beside(batch)

    def _step(self, batch: list[Tensor]) -> StepLoss:
        weights = batch[2] if len(batch) > 2 else None
        return train_step(
            self._forward, self._optimizer, batch[0], batch[1], self._label_smoothing, weights, self._options
        )

    def _step_beside(self, batch: list[Tensor]) -> StepLoss:
        """An eager step on a stream of its own, as capturing demands of those before it."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = self._step(batch)
        current.wait_stream(self._stream)
        return losses

    def _capture(self, batch: list[Tensor]) -> _Graph | None:
        """Record the step, which does not run; None where an operation in it cannot be recorded."""
        held = [tensor.clone() for tensor in batch]
        graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        try:
            # Threads that fetch the next batches go on meanwhile, and must not spoil the recording.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                losses = torch.stack(self._step(held))
        except RuntimeError as error:
            self._can_capture = False
            reason = str(error).strip().splitlines()[0]
            say(f"  training steps are launched one operation at a time: this network cannot be captured ({reason})")
            return None
        return _Graph(graph, held, losses)

    def _replay(self, captured: _Graph, batch: list[Tensor]) -> StepLoss:
        for held, given in zip(captured.batch, batch, strict=True):
            held.copy_(given)
        captured.graph.replay()
        return StepLoss(*captured.losses.clone())


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The stream on which steps are captured: one for all trainings of a process, since matrix products keep a
    workspace of some 64 MiB for each stream that they ever ran on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The mean over the batch; with `weights` (N), sum(weight x loss) / sum(weight), as torch does by class weights."""
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return (weights * losses).sum() / weights.sum()
