"""From module to engine and back: export, emulation, runtimes, comparison. Knows no Trainer."""
