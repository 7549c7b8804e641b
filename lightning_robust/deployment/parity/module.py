"""A module of the user's, in memory, held against a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.graph.explain import ExportError
from lightning_robust.deployment.graph.frozen import frozen_copy, to_args
from lightning_robust.deployment.parity.judge import judge_report
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.gate.check import Judgement

_TIME = 30.0  # seconds to find the layer that a failure names


def judge_module(
    module: nn.Module,
    inputs: Any,
    limits: Mapping[str, float],
    budget: str = "",
    targets: Sequence[str] | None = None,
    *,
    build: BuildSettings = DEFAULTS,
    **settings: Any,
) -> Judgement:
    """Measure a module and say whether it keeps to a budget; where it does not, which layer costs most.

    Args:
        module: Any module; a copy in fp32 on the CPU is measured.
        inputs: What its ``forward`` takes: a tuple is its positional arguments.
        limits: ``"<target>/<metric>"`` -> largest allowed value.
        budget: Where they are from.
        targets: What is measured; None for what is limited.
        build: How engines are built and run.
        settings: Of :func:`~.measure.measure_parity`; ``decode`` and ``moved`` are the module's methods if not given.

    Raises:
        ValueError: For an unknown target, or inputs of no samples.

    Example:
        >>> module = nn.Linear(3, 1)
        >>> judge_module(module, torch.ones(4, 3), {"torch-fp32/rel_l2": 1e-3}).status
        'within'
    """
    frozen = frozen_copy(module)
    args = to_args(inputs if isinstance(inputs, tuple) else (inputs,), torch.float32)
    subject = Subject(frozen, args, build)
    for name in ("decode", "moved"):
        settings.setdefault(name, getattr(frozen, name, None))
    if settings["decode"] is None:
        settings["moved"] = None
    names = list(targets or dict.fromkeys(key.partition("/")[0] for key in limits))
    report = measure_parity(subject, available(names, build), tolerance=dict(limits), **settings)
    judgement = judge_report(report, limits, budget, targets or ())
    if not judgement.beyond:
        return judgement
    reads, known = settings["decode"], settings.get("known")
    try:
        found = localise(subject, report, decode=reads, known=known, limits=limits, time_limit=_TIME)
        return judge_report(found, limits, budget, targets or ())
    except (ExportError, ValueError):
        # a graph that cannot be emulated, or outputs that are not finite: there is no layer to name
        return judgement
