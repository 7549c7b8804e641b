"""Training in block floating point, which SWACallback switches on with ``word_length``."""
