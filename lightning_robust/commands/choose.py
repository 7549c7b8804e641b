"""``lightning-robust choose``: the best of several initialisations and trainings, for a part of the cost of all."""

from __future__ import annotations

from pathlib import Path

from lightning_robust.checks import check_positive
from lightning_robust.sweeps.choice import Choice
from lightning_robust.sweeps.file import read_settings


def choose(
    file: str,
    *,
    output: str | None = None,
    address: str | None = None,
    cpus: int | None = None,
) -> None:
    """Choose the best of several initialisations, techniques and settings by successive halving on Ray Tune.

    Every candidate trains for a few epochs, the best third for three times as many, and so on; the finalists train to
    the end with several seeds. Each round is a whole training whose schedule is brought down to its epochs. A candidate
    that fails, or has no number for a criterion, is out, and the race goes on. A race that was killed goes on when the
    command is given again. The output folder holds winner.yaml for `lightning-robust fit`, choose.json, comparison.html
    with the Pareto picture, and every training. How far the winner is before the other finalists is said with its 95 %
    interval over seeds, and with the chance that it is the better one.

    Args:
        file: The choice: `configs`, `candidates`, `criteria`, `budget`, `seeds`, `reduction`, `scaled`, `resources`,
            `retries`.
        output: Folder for the results; by default choices/ and the name of the file. One with the same choice goes on.
            On a cluster, one that all machines share.
        address: Address of a running Ray cluster, such as auto or ray-head:6379; by default this machine alone.
        cpus: Cores of this machine to use; all by default.
    """
    settings = read_settings(file, Choice)
    check_positive(cpus=cpus)
    folder = Path(output or Path("choices") / Path(file).stem).resolve()

    from lightning_robust.commands.work.choose import report_choice
    from lightning_robust.sweeps.race import Race
    from lightning_robust.sweeps.ray import require_ray

    require_ray()
    report_choice(Race(settings, folder, address, cpus).run(), settings, folder)
