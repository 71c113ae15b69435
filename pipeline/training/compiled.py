"""The body's forward and backward pass compiled by torch.compile, for long trainings; eager where that fails."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.network import Network
from pipeline.system.console import say


class CompiledNetwork:
    """Images to logits, by kernels that are compiled for the shape of the first batch, which takes some ten seconds.

    The network itself stays as it is, with the names of its parameters, and other shapes and modes go through it as
    before. Its head, with dropout, is not compiled, so that the same random numbers are drawn: losses are the network's
    own but for rounding. Where compiling fails, a sentence says so and the network does all of it.
    """

    def __init__(self, network: Network) -> None:
        torch.compiler.reset()  # what earlier stages compiled counts against a limit, past which nothing is compiled
        self._network = network
        self._activations: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self._network.head(self.activations(images))
        return logits

    def activations(self, images: Tensor) -> Tensor:
        """The head's input."""
        if self._activations is None:
            self._activations = self._compile(images)
        return self._activations(images)

    def _compile(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Try both passes, before the first step has made gradients; they leave no trace."""
        network = self._network
        compiled = torch.compile(network.activations, dynamic=False)  # its kernels know the sizes
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        try:
            with torch.random.fork_rng([images.get_device()] if images.is_cuda else []):
                activations = compiled(images)
                if activations.requires_grad:
                    activations.sum().backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # compilers fail in ways of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            say(f"  the network is trained without being compiled, since that fails here ({reason})")
            compiled = network.activations
        network.zero_grad(set_to_none=True)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        return compiled
