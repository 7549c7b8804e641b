"""Independent computations that logged numbers are compared with: attacks in a few lines, distances, losses."""

import copy

import torch

from .runner import fresh, make_trainer


def get(batch, path):
    """The part of a batch at a path as ``0.encoder_cont``; the empty path is the batch."""
    if path == "":
        return batch
    for name in str(path).split("."):
        if name.isdigit():
            batch = batch[int(name)]
        else:
            batch = batch[name] if isinstance(batch, dict) or hasattr(batch, "keys") else getattr(batch, name)
    return batch


def put(batch, path, value):
    """A copy of the batch with another part at a path."""
    if path == "":
        return value
    first, _, rest = str(path).partition(".")
    key = int(first) if first.isdigit() else first
    value = put(get(batch, first), rest, value) if rest else value
    if isinstance(batch, tuple | list):
        parts = list(batch)
        parts[key] = value
        return type(batch)(parts)
    other = copy.copy(batch)
    other[key] = value
    return other


def loss_of(module, batch):
    """The loss that attacks climb: ``attack_loss``, else that of the training step in evaluation mode."""
    if hasattr(module, "attack_loss"):
        return module.attack_loss(batch)
    step = module.training_step
    output = step(batch) if step.__func__.__code__.co_argcount == 2 else step(batch, 0)
    return output["loss"] if isinstance(output, dict) else output


def silenced(guest, state):
    """A fresh module in evaluation mode whose steps log nowhere."""
    module = fresh(guest, state).eval()
    module.trainer = make_trainer()
    module.trainer.validating = True
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def fgsm(guest, state, batch, eps):
    """One signed step of each input, within the range of pixels."""
    module = silenced(guest, state)
    inputs = [get(batch, path).clone().requires_grad_() for path in guest.inputs]
    moved = batch
    for path, tensor in zip(guest.inputs, inputs, strict=True):
        moved = put(moved, path, tensor)
    loss = loss_of(module, moved)
    for path, tensor, gradient in zip(guest.inputs, inputs, torch.autograd.grad(loss, inputs), strict=True):
        value = tensor.detach() + eps * gradient.sign()
        moved = put(moved, path, value.clamp(0, 1) if guest.bounds == "pixels" else value)
    return moved


def outputs(guest, module, batch):
    """The floating tensors that ``forward`` gives for a batch, in order."""
    result = module(get(batch, guest.inputs[0])) if guest.forward is None else guest.forward(module, batch)
    return [tensor for tensor in tensors(result) if tensor.is_floating_point()]


def tensors(value):
    """Every tensor in nested dicts, lists and tuples; HuggingFace's outputs are dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def activations(guest, module, path, batches):
    """What a layer gives in its first call for each batch."""
    kept = []
    hook = module.get_submodule(path).register_forward_hook(lambda part, args, output: kept.append(tensors(output)[0]))
    found = []
    with torch.no_grad():
        for batch in batches:
            kept.clear()
            outputs(guest, module, batch)
            found.append(kept[0])
    hook.remove()
    return found


def movement(start, now, names):
    """The distance of weights relative to their length at the start."""
    before = torch.cat([start[name].flatten().double() for name in names])
    after = torch.cat([now[name].flatten().double() for name in names])
    return ((after - before).norm() / before.norm()).item()


def divergence(clean, moved):
    """The distance of two lists of tensors relative to the first."""
    clean, moved = (torch.cat([t.flatten().double() for t in each]) for each in (clean, moved))
    return ((moved - clean).norm() / clean.norm()).item()


def mean_of(states):
    """The mean of each floating tensor."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0)
        for name, tensor in states[0].items()
        if tensor.is_floating_point()
    }


def cast(batch, dtype):
    """A batch of dicts, lists and tuples with its floating tensors in another type."""
    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if hasattr(batch, "keys"):
        other = copy.copy(batch)
        for name in batch.keys():  # noqa: SIM118 - a graph's batch is no dict
            other[name] = cast(batch[name], dtype)
        return other
    return type(batch)(cast(part, dtype) for part in batch) if isinstance(batch, tuple | list) else batch


def first_rows(batch, count):
    """The first samples of a batch of dicts, lists and tuples of tensors."""
    if isinstance(batch, torch.Tensor):
        return batch[:count]
    if isinstance(batch, dict):
        return {name: first_rows(part, count) for name, part in batch.items()}
    return type(batch)(first_rows(part, count) for part in batch) if isinstance(batch, tuple | list) else batch
