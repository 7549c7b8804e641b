"""The ``lightning-robust`` command; what trains is imported once the command is known to train."""

from typing import TYPE_CHECKING

from lightning_robust.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_robust.cli.entrance import main as main
    from lightning_robust.cli.hidden_warnings import others_warnings_hidden as others_warnings_hidden
    from lightning_robust.cli.robust_cli import RobustCLI as RobustCLI
    from lightning_robust.cli.techniques import TECHNIQUES as TECHNIQUES
    from lightning_robust.cli.techniques import Slot as Slot
    from lightning_robust.cli.trainer import RobustTrainer as RobustTrainer
    from lightning_robust.cli.training_parser import RobustParser as RobustParser
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
