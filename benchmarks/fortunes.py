"""FGM, PGD and FreeLB on texts that people wrote: what is a saying of Debian's package ``fortunes`` about?

    apt-get install fortunes
    python benchmarks/fortunes.py [--seeds 0 1 2] [--out runs/fortunes] [--jobs 2]

The eight largest of its files that have a subject: art, computers, men-women, people, politics, science, songs-poems
and work, about 6,000 sayings. Left out of the large ones are definitions (known by its form), cookie, miscellaneous and
wisdom (of everything) and knghtbrd (a chat). A saying is its first 32 words without the attribution; the vocabulary
are the 4,000 most frequent words of training, the others are one. A fifth, drawn by the seed, is tested; the
transformer, the trainings and the attack are those of ``text.py``. Finished rows are kept in ``results.json``. Without
the package nothing is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from rows import Columns, options, run_rows
from text import RADIUS, ROWS, Reader, train_and_test
from torch import Tensor

FOLDER = Path("/usr/share/games/fortunes")
SUBJECTS = ("art", "computers", "men-women", "people", "politics", "science", "songs-poems", "work")
VOCABULARY, LENGTH, SHORTEST, EPOCHS = 4000, 32, 4, 10
UNKNOWN = 1
"""The token of a word outside of the vocabulary; 0 is no word."""
COLUMNS: Columns = {
    "clean": ("0", 100, ".1f"),
    f"attacked, {RADIUS / 2:g}": (f"{RADIUS / 2:g}", 100, ".1f"),
    f"attacked, {RADIUS:g}": (f"{RADIUS:g}", 100, ".1f"),
    "seconds": ("seconds", 1, ".0f"),
}
Saying = tuple[str, ...]


def sayings(content: str) -> list[Saying]:
    r"""The words of each saying of a file, without attribution; short ones and repetitions are left out.

    Example:
        >>> sayings("Don't panic, and bring a towel.\n\t\t-- D. Adams\n%\nToo short.\n%\n")
        [("don't", 'panic', 'and', 'bring', 'a', 'towel')]
    """
    said = (re.split(r"\n\s*--", entry)[0] for entry in re.split(r"(?m)^%\n", content))
    words = (tuple(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())) for text in said)
    return list(dict.fromkeys(each for each in words if len(each) >= SHORTEST))


def numbered(texts: Iterable[Saying], vocabulary: dict[str, int]) -> Tensor:
    """Tokens ``(N, 32)``, padded with 0."""
    rows = [[vocabulary.get(word, UNKNOWN) for word in text[:LENGTH]] for text in texts]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


def split(files: Sequence[list[Saying]], seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Tokens and classes to train on, and those of a fifth to test on; the vocabulary is that of training."""
    texts = [(text, label) for label, found in enumerate(files) for text in found]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [texts[place] for place in order]
    test, train = chosen[: len(chosen) // 5], chosen[len(chosen) // 5 :]
    frequent = Counter(word for text, _ in train for word in text).most_common(VOCABULARY - 1)
    vocabulary = {word: number for number, (word, _) in enumerate(frequent, UNKNOWN + 1)}

    def tensors(part: list[tuple[Saying, int]]) -> tuple[Tensor, Tensor]:
        return numbered((text for text, _ in part), vocabulary), torch.tensor([label for _, label in part])

    return tensors(train), tensors(test)


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One row; nothing of it is kept but the numbers."""
    train, test = split([sayings((FOLDER / subject).read_text(errors="replace")) for subject in SUBJECTS], seed)
    pl.seed_everything(seed, verbose=False)
    numbers = train_and_test(Reader(VOCABULARY, LENGTH, len(SUBJECTS)), ROWS[name], train, test, EPOCHS)
    most = test[1].bincount().max().item() / len(test[1])
    return numbers | {"sayings": len(train[1]) + len(test[1]), "most frequent class": most}


def main() -> None:
    """Run what is missing and print the table."""
    given = options(__doc__, "runs/fortunes", ROWS)
    missing = [subject for subject in SUBJECTS if not (FOLDER / subject).is_file()]
    if missing:
        print(f"Skipped: {missing} are not in {FOLDER}. Call `apt-get install fortunes` for them.")
        return
    print("\n" + run_rows(given, trained).table(given.only, given.seeds, COLUMNS))


if __name__ == "__main__":
    main()
