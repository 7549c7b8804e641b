"""Adversarial perturbations behind an embedding, for inputs that are indices: FGM, PGD and FreeLB.

A forward hook perturbs the output of the embedding module. The weights stay as they are, and so does an output head
that shares the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.functional.ascent import AttackRecord, count_useless
from lightning_robust.functional.input_gradients import input_gradients

Loss = Callable[[], Tensor]


class EmbeddingDeltas:
    r"""Perturbations of the outputs of an embedding in one forward pass, one for each call of the embedding.

    Padding tokens (``padding_idx`` of the embedding) are never perturbed.

    Args:
        embedding: The module, for instance ``nn.Embedding``; it maps indices ``(batch, tokens)`` to
            ``(batch, tokens, dim)``.
        magnitude: The first pass has a perturbation drawn uniformly in :math:`\pm m / \sqrt{n d}` for ``n`` tokens
            other than padding, as FreeLB has; 0 begins at zero.
        generator: Source of the draw, on the embedding's device; None takes a seed from torch's.

    Example:
        >>> embedding = nn.Embedding(5, 2, padding_idx=0)
        >>> deltas, tokens = EmbeddingDeltas(embedding), torch.tensor([[3, 0]])
        >>> loss = deltas.loss(lambda: embedding(tokens).sum())
        >>> deltas.climb(deltas.gradients(loss), step_size=2.0, radius=None)
        >>> deltas.deltas[0]  # padding stays
        tensor([[[1.4142, 1.4142],
                 [0.0000, 0.0000]]], requires_grad=True)
    """

    def __init__(self, embedding: nn.Module, magnitude: float = 0.0, generator: torch.Generator | None = None) -> None:
        self.embedding, self.magnitude = embedding, magnitude
        self.deltas: list[Tensor] = []
        self._masks: list[Tensor | None] = []
        self._generator = generator
        # drawn here, so that a pass that draws the start has the random numbers of all others
        self._seed = int(torch.randint(2**62, ())) if magnitude > 0 and generator is None else 0
        self._dtype = torch.float32
        self._samples = 0
        self._counts: list[Tensor] = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Perturb the embedding's outputs inside the block; the first pass begins the perturbations."""
        calls = 0

        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            nonlocal calls
            if calls == len(self.deltas):
                self._dtype = output.dtype
                self._masks.append(_not_padding(module, args))
                self.deltas.append(self._begin(output.detach()))
            perturbed = output + self.deltas[calls].to(output)
            calls += 1
            return perturbed

        handle = self.embedding.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def loss(self, loss_fn: Loss) -> Tensor:
        """The loss under the current perturbations.

        Raises:
            ValueError: If the embedding was not called.
        """
        with self.applied(), torch.enable_grad():
            loss = loss_fn()
        if not self.deltas:
            raise ValueError(
                f"Expected the loss to use the embedding {type(self.embedding).__name__}, but it was never called. "
                "Name the module that turns the indices of this batch into vectors."
            )
        return loss

    def gradients(self, loss: Tensor, *, retain_graph: bool = False) -> list[Tensor]:
        """Gradients with respect to the perturbations; zero for padding and where they are not finite."""
        gradients = input_gradients(loss.sum(), self.deltas, dtype=self._dtype, retain_graph=retain_graph)
        self._samples += sum(len(gradient) for gradient in gradients)
        self._counts += [count_useless(gradient) for gradient in gradients]
        return [
            self._masked(torch.nan_to_num(gradient, 0.0, 0.0, 0.0), mask)
            for gradient, mask in zip(gradients, self._masks, strict=True)
        ]

    def count(self, record: AttackRecord | None) -> None:
        """Add the passes that took a gradient, and the gradients, to a record."""
        if record is not None and self._counts:
            record.passes += len(self._counts) // len(self.deltas)
            record.forwards += self._samples // len(self.deltas)
            record.add_gradients(self._samples, torch.stack(self._counts).sum(0))
        self._samples, self._counts = 0, []

    def climb(self, gradients: list[Tensor], step_size: float, radius: float | None) -> None:
        """Step along the gradient divided by its norm, then project onto the ball of ``radius``.

        Norms are over a sample, in all calls of the embedding together.
        """
        steps = zip(self.deltas, gradients, _sample_norms(gradients), strict=True)
        deltas = [delta.detach() + step_size * gradient / norm for delta, gradient, norm in steps]
        if radius is not None:
            norms = _sample_norms(deltas)
            deltas = [delta * (radius / norm).clamp(max=1) for delta, norm in zip(deltas, norms, strict=True)]
        self.deltas = [delta.requires_grad_() for delta in deltas]

    def _begin(self, output: Tensor) -> Tensor:
        """The first perturbation of the newest call."""
        delta, mask = torch.zeros_like(output, dtype=torch.float32), self._masks[-1]
        if self.magnitude == 0:
            return delta.requires_grad_()
        if self._generator is None:
            self._generator = torch.Generator(output.device).manual_seed(self._seed)
        tokens = torch.full((1,), delta.shape[1], device=delta.device) if mask is None else mask.sum(1).clamp(min=1)
        limit = self.magnitude / (tokens * delta.shape[-1]).sqrt()
        direction = delta.uniform_(-1, 1, generator=self._generator)
        return self._masked(direction * limit.reshape(-1, 1, 1), mask).requires_grad_()

    @staticmethod
    def _masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
        return tensor if mask is None else tensor * mask.unsqueeze(-1).to(tensor)


def perturb_embedding(
    loss_fn: Loss,
    embedding: nn.Module,
    eps: float,
    *,
    steps: int = 1,
    step_size: float | None = None,
    record: AttackRecord | None = None,
) -> EmbeddingDeltas:
    r"""Find the perturbations that raise the loss most: FGM with one step, PGD with several.

    .. math:: \delta_{t+1} = \Pi_\epsilon\!\left(\delta_t + \alpha\, g / \|g\|\right)

    with the norm over a sample, in all calls of the embedding together, so that neither the scale of the loss nor the
    size of the batch matters. Every pass draws the same random numbers, so that dropout masks agree. FGM:
    `Miyato et al. 2016 <https://arxiv.org/abs/1605.07725>`_.

    Args:
        loss_fn: Runs the model and returns a scalar.
        embedding: The module whose output is perturbed.
        eps: Radius of the ball, in units of the embedding, for each sample.
        steps: Number of steps.
        step_size: None is ``eps`` for one step, else 2.5 eps / steps.
        record: Counts passes and useless gradients.

    Returns:
        The perturbations; run the model inside ``.applied()`` to use them.

    Raises:
        ValueError: For a negative ``eps``, fewer than one step, or an embedding that the loss does not use.

    Example:
        >>> embedding = nn.Embedding(3, 2)
        >>> deltas = perturb_embedding(lambda: embedding(torch.tensor([[0, 1]])).sum(), embedding, 0.5)
        >>> deltas.deltas[0].shape, round(deltas.deltas[0].norm().item(), 4)
        (torch.Size([1, 2, 2]), 0.5)
    """
    _require_valid(eps, steps)
    size = (eps if steps == 1 else 2.5 * eps / steps) if step_size is None else step_size
    deltas = EmbeddingDeltas(embedding)
    for _ in range(steps):
        with replayed_rng():
            loss = deltas.loss(loss_fn)
        deltas.climb(deltas.gradients(loss), size, eps)
    deltas.count(record)
    return deltas


def freelb_loss(
    loss_fn: Loss,
    embedding: nn.Module,
    *,
    steps: int = 3,
    step_size: float = 0.1,
    magnitude: float = 0.1,
    radius: float | None = None,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""The mean loss over all steps of an ascent in the embedding; each step trains the weights.

    `FreeLB, Zhu et al. 2019 <https://arxiv.org/abs/1909.11764>`_: a uniform start of length ``magnitude``, then
    ``steps`` passes, each of which moves the perturbation by ``step_size`` along its gradient; the result is the mean
    of their losses. All passes share their dropout masks, as the paper demands. Memory: the graphs of all steps.

    Args:
        loss_fn: Runs the model and returns a scalar.
        embedding: The module whose output is perturbed.
        steps: Number of passes.
        step_size: Of the ascent.
        magnitude: Length of the start.
        radius: Of the ball that bounds the perturbation; None does not bound it.
        generator: Source of the start, on the embedding's device.
        record: Counts useless gradients, and the passes that move the perturbation: all but the last.

    Raises:
        ValueError: For fewer than one step, or an embedding that the loss does not use.

    Example:
        >>> embedding = nn.Embedding(3, 2)
        >>> freelb_loss(lambda: embedding(torch.tensor([[0, 1]])).sum(), embedding).requires_grad
        True
    """
    _require_valid(magnitude, steps)
    deltas = EmbeddingDeltas(embedding, magnitude, generator)
    total: Tensor | float = 0.0
    for step in range(steps):
        with replayed_rng(keep=step == steps - 1):
            loss = deltas.loss(loss_fn)
        total = total + loss / steps
        if step < steps - 1:
            deltas.climb(deltas.gradients(loss, retain_graph=True), step_size, radius)
    deltas.count(record)
    return torch.as_tensor(total)


@contextmanager
def replayed_rng(*, keep: bool = False) -> Iterator[None]:
    """Random numbers of the block repeat after it, unless ``keep``.

    Example:
        >>> with replayed_rng():
        ...     first = torch.rand(3)
        >>> torch.equal(first, torch.rand(3))
        True
    """
    if keep:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def _require_valid(eps: float, steps: int) -> None:
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"Expected `eps` to be finite and not negative, but got {eps}.")
    if steps < 1:
        raise ValueError(f"Expected at least one step, but got {steps}.")


def _not_padding(module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
    padding = getattr(module, "padding_idx", None)
    tokens = args[0] if args else None
    if padding is None or not isinstance(tokens, Tensor) or tokens.is_floating_point():
        return None
    return tokens != padding


def _sample_norms(tensors: list[Tensor]) -> list[Tensor]:
    """The norm of each sample over all tensors; of each alone where they are of other batches. Shaped to divide by."""
    norms = [tensor.flatten(1).norm(dim=1) for tensor in tensors]
    if len({len(norm) for norm in norms}) == 1:
        norms = [torch.stack(norms).norm(dim=0)] * len(tensors)
    return [
        norm.clamp(min=1e-12).reshape(-1, *[1] * (tensor.ndim - 1)) for norm, tensor in zip(norms, tensors, strict=True)
    ]
