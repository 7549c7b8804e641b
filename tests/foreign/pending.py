"""Pairs of a guest and techniques that do not work yet."""

PENDING: dict[str, str] = {
    "nbeats": "fgsm fgsm_rs pgd robust_validation lazy datapath parity",
    "tft": "fgsm fgsm_rs pgd robust_validation lazy datapath parity",
    "graph_classifier": "fgsm fgsm_rs pgd robust_validation swa ema swalp soup wise_ft lazy datapath parity",
    "node_regression": "fgsm fgsm_rs pgd robust_validation lazy datapath parity",
    "words": "lazy datapath parity",
    "queueing": "fgsm fgsm_rs pgd robust_validation swa ema swalp soup wise_ft lazy datapath parity",
    "metadata": "fgsm fgsm_rs pgd robust_validation swa ema swalp soup wise_ft lazy datapath parity",
    "gan": "swa ema swalp soup wise_ft lazy datapath parity",
    "bert": "lazy datapath parity",
    "vit": "fgsm fgsm_rs pgd robust_validation lazy datapath parity",
    "segformer": "fgsm fgsm_rs pgd robust_validation swa ema swalp soup wise_ft lazy datapath parity",
    "yolos": "fgsm fgsm_rs pgd robust_validation lazy datapath parity",
    "lora": "fgsm fgsm_rs pgd robust_validation lazy datapath parity",
}
