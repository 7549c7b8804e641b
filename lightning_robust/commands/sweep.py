"""``lightning-robust sweep``: many configurations as Ray Tune trials, a table of them, a soup of their checkpoints."""

from __future__ import annotations

from pathlib import Path

from lightning_robust.checks import check_new_folder, check_positive
from lightning_robust.sweeps.file import Sweep, read_settings


def sweep(
    file: str,
    *,
    output: str | None = None,
    address: str | None = None,
    cpus: int | None = None,
) -> None:
    """Train many configurations with Ray Tune, compare them, and cook a soup of their checkpoints if the file has one.

    Each trial is `lightning-robust fit` in a process and a folder of its own: relative paths of output lead there, and
    paths of input must be absolute. A trial that fails or is killed goes on from the checkpoint of its last epoch;
    after `retries` it is given up and the others go on. The output folder holds trials.csv, trials.json, config.yaml
    and the last checkpoint of each trial, and soup/.

    Args:
        file: The sweep: `configs`, `vary`, `monitor`, `mode`, `num_samples`, `seed`, `resources`, `retries`, `soup`.
        output: Folder for the results, new or empty; by default sweeps/ and the name of the file. On a cluster, one
            that all machines share.
        address: Address of a running Ray cluster, such as auto or ray-head:6379; by default this machine alone.
        cpus: Cores of this machine to use; all by default.
    """
    settings = read_settings(file, Sweep)
    check_positive(cpus=cpus)
    folder = Path(output or Path("sweeps") / Path(file).stem).resolve()
    check_new_folder(folder)

    from lightning_robust.commands.work.sweep import cook, report, soup_arguments
    from lightning_robust.sweeps.ray import cluster, require_ray, run_trials
    from lightning_robust.sweeps.trials import plan

    require_ray()
    trials = plan(settings)
    recipe = None if settings.soup is None else soup_arguments(settings)
    print(f"{len(trials)} trials in {folder}")
    with cluster(address, cpus):
        run_trials(trials, settings, folder)
    best = report(trials, settings, folder)
    if recipe is not None:
        cook([trial for trial in trials if trial.status == "finished"], best, recipe, folder)
