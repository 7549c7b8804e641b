"""Train on perturbed inputs, and validate on them."""

from lightning_robust.callbacks.adversarial.awp import AWP as AWP
from lightning_robust.callbacks.adversarial.callback import AdversarialCallback as AdversarialCallback
from lightning_robust.callbacks.adversarial.embedding_methods import FGM as FGM
from lightning_robust.callbacks.adversarial.embedding_methods import EmbeddingPGD as EmbeddingPGD
from lightning_robust.callbacks.adversarial.embedding_methods import FreeLB as FreeLB
from lightning_robust.callbacks.adversarial.free import Free as Free
from lightning_robust.callbacks.adversarial.methods import PGD as PGD
from lightning_robust.callbacks.adversarial.methods import Attack as Attack
from lightning_robust.callbacks.adversarial.single_step import FGSM as FGSM
from lightning_robust.callbacks.adversarial.single_step import FGSMRS as FGSMRS
from lightning_robust.callbacks.adversarial.single_step import NFGSM as NFGSM
from lightning_robust.callbacks.adversarial.trades import MART as MART
from lightning_robust.callbacks.adversarial.trades import TRADES as TRADES
