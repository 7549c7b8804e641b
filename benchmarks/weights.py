"""Averaging, quantising and cooking soups beside other implementations, as parts of ``speed.py``; and their memory."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from guests import Guest
from lightning.pytorch.callbacks import EMAWeightAveraging
from racing import Contestants, race, table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_robust.functional.averaging import RunningAverage
from lightning_robust.functional.quantization import quantize_block
from lightning_robust.functional.soups import greedy_soup
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.checkpoints import read_state


def averaging(name: str, module: nn.Module, rounds: int, guests: dict[str, Guest]) -> None:
    """One update of an exponential average with a decay of 0.999, and exchanging weights; ``guests`` are others."""
    total = sum(p.numel() for p in module.parameters())
    with torch.no_grad():
        moved = f"{12 * total / 1e6:.0f} MB moved"
        times = race(updates(module) | guests, rounds)
        table(f"Update of an EMA, {name}, {total / 1e6:.2f} M parameters ({moved})", times)
        table(f"Exchange of weights, {name}", race(exchanges(module), rounds))


def updates(module: nn.Module) -> Contestants:
    """Ways to update an exponential average with a decay of 0.999, where the module is; the first is the limit."""
    parameters = list(module.parameters())
    flat, shadow = _flat(parameters), _flat(parameters)
    ours = RunningAverage("ema", half_life=693)
    ours.update(parameters)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    callback, lightning = _lightning(module)
    timm = [p.detach().clone() for p in parameters]

    def timm_formula() -> None:
        # timm's ModelEmaV3 builds both lists anew and has no cache
        torch._foreach_lerp_(list(timm), [p.detach() for p in module.parameters()], weight=0.001)

    return {
        "limit: one flat in-place lerp": lambda: shadow.lerp_(flat, 0.001),
        "lightning_robust": lambda: ours.update(parameters),
        "timm's formula": timm_formula,
        "torch AveragedModel": lambda: averaged.update_parameters(module),
        "Lightning EMAWeightAveraging": lambda: callback._average_model.update_parameters(lightning),
    }


def exchanges(module: nn.Module) -> Contestants:
    """Ways to put other weights into a module; the first is the limit of those that copy."""
    flat, shadow = _flat(module.parameters()), _flat(module.parameters())
    callback, lightning = _lightning(module)
    weights = Weights(module)
    held = [tensor.detach().clone() for tensor in weights.tensors()]
    return {
        "limit of copying: one flat copy": lambda: shadow.copy_(flat),
        "Lightning WeightAveraging, one way": lambda: callback._swap_models(lightning),
        "lightning_robust, there and back": lambda: weights.restore(weights.put(held)),
    }


def _flat(parameters: Iterable[Tensor]) -> Tensor:
    """As many random numbers, where the parameters are."""
    return torch.cat([torch.randn_like(p).detach().flatten() for p in parameters])


def _lightning(module: nn.Module) -> tuple[EMAWeightAveraging, pl.LightningModule]:
    """Its callback, which asks the module where it is, and a module that knows."""
    callback, lightning = EMAWeightAveraging(decay=0.999), Wrapped(module).to(next(module.parameters()).device)
    callback.setup(pl.Trainer(logger=False, enable_checkpointing=False), lightning, "fit")
    return callback, lightning


class Wrapped(pl.LightningModule):
    """What Lightning's callback wants."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Created(TorchDispatchMode):
    """The largest new tensor that operations return, and how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        result = func(*args, **(kwargs or {}))
        known = {t.data_ptr() for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.data_ptr() not in known:
                self.count += 1
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


def memory(module: nn.Module) -> None:
    """What an average holds and what an update allocates on top."""
    parameters = list(module.parameters())
    size = sum(p.numel() for p in parameters) * 4
    largest = max(p.numel() for p in parameters) * 4
    average = RunningAverage("ema", half_life=693)
    average.update(parameters)
    held = sum(t.numel() * t.element_size() for t in average.values())
    print(f"\nmemory: for {size / 2**20:.1f} MiB of fp32 weights the average holds {held / size:.3f} times as much")
    for label, tensors in (("fp32", parameters), ("bf16", [p.detach().bfloat16() for p in parameters])):
        with Created() as created:
            average.update(tensors)
        share = created.largest / largest
        print(f"an update of {label} weights makes {created.count} temporaries, each at most {share:.2f} of a tensor")


def quantiser(rounds: int, guests: dict[str, Guest]) -> None:
    """512 x 4608 values, stochastic, an exponent a row; ``guests`` are others."""
    values = torch.randn(512, 4608)
    out = torch.empty_like(values)
    generator = torch.Generator().manual_seed(0)
    implementations: Contestants = {
        "limit: memory copy": lambda: out.copy_(values),
        "as many random numbers": lambda: out.uniform_(generator=generator),
        "lightning_robust": lambda: quantize_block(values, 8, block_dim=0, generator=generator, out=out),
        "lightning_robust, nearest": lambda: quantize_block(values, 8, block_dim=0, rounding="nearest", out=out),
    }
    implementations |= guests
    table("Quantiser, 512 x 4608, stochastic, 8 bits", race(implementations, rounds))


class Held:
    """Held-out data for linear classifiers, evaluated batch by batch; counts batches."""

    def __init__(self, truth: nn.Linear) -> None:
        inputs = torch.randn(4096, 64)
        with torch.no_grad():
            self.batches = list(zip(inputs.split(64), truth(inputs).argmax(1).split(64), strict=True))
        self.seen = 0

    def running(self, state: dict[str, Tensor]) -> Iterator[tuple[float, float]]:
        """Accuracy so far and share of the data."""
        right = 0
        for number, (inputs, labels) in enumerate(self.batches, 1):
            self.seen += 1
            logits = torch.addmm(state["bias"], inputs, state["weight"].T)
            right += int((logits.argmax(1) == labels).sum())
            yield right / (64 * number), number / len(self.batches)

    def accuracy(self, state: dict[str, Tensor]) -> float:
        """Accuracy on all of it."""
        *_, (accuracy, _) = self.running(state)
        return accuracy


class Files:
    """Ingredients in files; counts how often one is opened."""

    def __init__(self, folder: str, states: list[dict[str, Tensor]]) -> None:
        self.paths = [Path(folder) / f"{index}.ckpt" for index in range(len(states))]
        for path, state in zip(self.paths, states, strict=True):
            torch.save({"state_dict": state}, path)
        self.opened = 0

    def each_time(self, path: Path) -> dict[str, Tensor]:
        """Open the file."""
        self.opened += 1
        return read_state(path)

    def ingredients(self) -> list[Callable[[], dict[str, Tensor]]]:
        """Functions that open a file once and keep it mapped, as the callback does."""
        return [functools.cache(lambda path=path: self.each_time(path)) for path in self.paths]


def soup(count: int = 20) -> None:
    """A greedy soup of classifiers of unequal quality, against the plain algorithm with 2N - 1 evaluations."""
    torch.manual_seed(0)
    truth = nn.Linear(64, 10)
    held = Held(truth)
    states = [
        {k: (v + 0.004 * 1.45**index * torch.randn_like(v)).detach() for k, v in truth.state_dict().items()}
        for index in range(count)
    ]
    scores = [held.accuracy(state) for state in states]
    print(f"\ngreedy soup of {count} ingredients with accuracies {min(scores):.3f} to {max(scores):.3f}")
    print("| implementation | evaluated batches | files opened | seconds | soup |\n| --- | --- | --- | --- | --- |")
    first: tuple[list[int], dict[str, Tensor], int, float] | None = None
    for name in ("plain", "lightning_robust", "lightning_robust, scores known"):
        with tempfile.TemporaryDirectory() as folder:
            files, held.seen = Files(folder, states), 0
            start = time.process_time()
            if name == "plain":
                opened = [functools.partial(files.each_time, path) for path in files.paths]
                chosen, state = plain_greedy(opened, held.accuracy)
            else:
                known = scores if name.endswith("known") else None
                made = greedy_soup(files.ingredients(), held.running, scores=known, best_possible=1.0)
                chosen, state = made.ingredients, made.state
            seconds = time.process_time() - start
        first = first or (chosen, state, held.seen, seconds)
        same = chosen == first[0] and all(torch.allclose(state[key], first[1][key], atol=1e-6) for key in state)
        print(
            f"| {name} | {held.seen} ({held.seen / first[2]:.2f} x) | {files.opened} | {seconds:.3f} "
            f"({seconds / first[3]:.2f} x) | {'same' if same else 'another'}, {len(chosen)} in it |"
        )


def plain_greedy(
    states: list[Callable[[], dict[str, Tensor]]], evaluate: Callable[[dict[str, Tensor]], float]
) -> tuple[list[int], dict[str, Tensor]]:
    """The recipe as published: evaluate all, then add one by one, rescaling the running mean."""
    scores = [evaluate(state()) for state in states]
    order = sorted(range(len(states)), key=lambda index: scores[index], reverse=True)
    chosen, soup_state, best = [order[0]], dict(states[order[0]]()), scores[order[0]]
    for index in order[1:]:
        share, state = len(chosen) / (len(chosen) + 1), states[index]()
        candidate = {k: soup_state[k] * share + state[k] * (1 - share) for k in state}
        score = evaluate(candidate)
        if score > best:
            chosen, soup_state, best = [*chosen, index], candidate, score
    return chosen, soup_state
