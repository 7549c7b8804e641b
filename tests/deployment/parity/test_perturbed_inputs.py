"""Perturbed samples of a pass: each perturbation beside training's side, every input run once."""

import torch

from lightning_robust.deployment.engines.base import BulkRunner
from lightning_robust.deployment.parity.perturbed_inputs import PerturbedInputs


def test_perturbed_inputs_pair_each_perturbation_with_what_training_feeds():
    inputs = PerturbedInputs()
    for name, value, key, trained in (("a", 2.0, "same", 1.0), ("b", 3.0, "same", 1.0), ("c", 5.0, "resized", 4.0)):
        inputs.add(name, (torch.full((2, 1), value),), key, (torch.full((2, 1), trained),))
    calls = []

    def runner(args):
        calls.append(float(args[0][0]))
        return [args[0] * 10]

    pairs = list(inputs.pairs(inputs.run(runner, lambda: False)))
    assert [(name, float(old[0][0]), float(new[0][0])) for name, old, new in pairs] == [
        ("a", 10, 20),
        ("b", 10, 30),
        ("c", 40, 50),
    ]
    assert sorted(calls) == [1, 2, 3, 4, 5]
    starts = []

    def run_sets(sets):
        starts.append(len(sets))
        return [runner(args) for args in sets]

    in_bulk = list(inputs.pairs(inputs.run(BulkRunner(run_sets), lambda: False)))
    assert starts == [5]
    assert str(in_bulk) == str(pairs)
    assert inputs.run(BulkRunner(run_sets), lambda: True) == {}
    late = iter([False, False, True])
    assert [name for name, *_ in inputs.pairs(inputs.run(runner, lambda: next(late)))] == ["a"]
