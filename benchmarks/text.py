"""FGM, PGD and FreeLB on a small transformer, against plain training.

    python benchmarks/text.py [--seeds 0 1 2]

The task is made here: sentences of 8 to 16 words; each of 200 words has a polarity, and the four negations turn that of
the word after them; the class is the sign of the sum. 2,000 sentences to train on, 4,000 to test on. Attacked: PGD with
10 steps on the output of the embedding, within the radius that FGM trains with, and within half of it.
"""

from __future__ import annotations

import time

import lightning.pytorch as pl
import torch
from rows import options, quiet_trainer, summary
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialCallback
from lightning_robust.functional.embeddings import perturb_embedding

WORDS, NEGATIONS, LENGTH, RADIUS = 200, 4, 16, 1.0
ROWS = {
    "plain": None,
    "fgm": {"method": "fgm", "eps": RADIUS},
    "pgd, 3 steps": {"method": "pgd", "eps": RADIUS, "steps": 3},
    "freelb, 3 steps": {"method": "freelb", "eps": RADIUS / 2, "steps": 3, "step_size": RADIUS / 2},
}


def sentences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens ``(count, 16)``, padded with 0, and classes."""
    generator = torch.Generator().manual_seed(seed)
    polarity = torch.randn(WORDS + 1, generator=torch.Generator().manual_seed(0))
    polarity[: NEGATIONS + 1] = 0
    tokens = torch.randint(1, WORDS + 1, (count, LENGTH), generator=generator)
    negation = torch.randint(1, NEGATIONS + 1, tokens.shape, generator=generator)
    tokens = torch.where(torch.rand(tokens.shape, generator=generator) < 0.15, negation, tokens)
    lengths = torch.randint(8, LENGTH + 1, (count, 1), generator=generator)
    tokens = tokens.where(torch.arange(LENGTH) < lengths, 0)
    turned = torch.zeros_like(tokens, dtype=torch.bool)
    turned[:, 1:] = (tokens[:, :-1] > 0) & (tokens[:, :-1] <= NEGATIONS)
    return tokens, (torch.where(turned, -1, 1) * polarity[tokens]).sum(1).gt(0).long()


class Reader(pl.LightningModule):
    """Two transformer layers and the mean over words.

    Args:
        words: Of the vocabulary; 0 is no word.
        length: The most words of a text.
        classes: Number of classes.
    """

    def __init__(self, words: int = WORDS, length: int = LENGTH, classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, 64, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(length, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(N, length)`` to logits ``(N, classes)``."""
        words = (tokens > 0).unsqueeze(2)
        read = self.layers(self.embedding(tokens) + self.places, src_key_padding_mask=tokens == 0)
        logits: Tensor = self.head((read * words).sum(1) / words.sum(1))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3, weight_decay=0.01)


def measure(settings: dict[str, object] | None, seed: int) -> dict[str, float]:
    """Train, then test clean and attacked."""
    pl.seed_everything(seed, verbose=False)
    return train_and_test(Reader(), settings, sentences(2000, 1 + seed), sentences(4000, 1000), epochs=15)


def train_and_test(
    module: Reader,
    settings: dict[str, object] | None,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int,
) -> dict[str, float]:
    """Seconds of training, and accuracy by radius of the attack.

    Args:
        module: To train.
        settings: Of AdversarialCallback on the embedding; None trains plainly.
        train: Tokens ``(N, length)``, padded with 0, and classes.
        test: The same, to test on.
        epochs: How long to train.
    """
    loader = DataLoader(TensorDataset(*train), 50, shuffle=True)
    callbacks = [] if settings is None else [AdversarialCallback(embedding="embedding", **settings)]  # type: ignore[arg-type]
    start = time.perf_counter()
    quiet_trainer(callbacks, max_epochs=epochs).fit(module, loader)  # type: ignore[arg-type]
    numbers = {"seconds": time.perf_counter() - start}
    module.eval()
    tokens, classes = test
    for radius in (0.0, RADIUS / 2, RADIUS):
        deltas = perturb_embedding(lambda: cross_entropy(module(tokens), classes), module.embedding, radius, steps=10)
        with torch.no_grad(), deltas.applied():
            numbers[f"{radius:g}"] = (module(tokens).argmax(1) == classes).float().mean().item()
    return numbers


def main() -> None:
    """Print the table."""
    given = options(__doc__, "runs/text")
    found = {name: [measure(settings, seed) for seed in given.seeds] for name, settings in ROWS.items()}
    radii = [key for key in found["plain"][0] if key != "seconds"]
    print(f"| training | clean | {' | '.join(f'attacked, {r}' for r in radii[1:])} | time |\n|{' --- |' * 5}")
    base = [numbers["seconds"] for numbers in found["plain"]]
    for name, rows in found.items():
        times = sorted(numbers["seconds"] / b for numbers, b in zip(rows, base, strict=True))
        cells = [summary([numbers[r] for numbers in rows]) for r in radii]
        print(f"| {name} | {' | '.join(cells)} | {times[len(times) // 2]:.1f} x |")


if __name__ == "__main__":
    main()
