"""Pairs of a guest and techniques that do not work yet."""

PENDING: dict[str, str] = {
    "nbeats": "datapath",
    "tft": "datapath",
    "node_regression": "fgsm fgsm_rs pgd robust_validation lazy datapath",
}
