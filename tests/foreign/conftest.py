"""No download in this room; its helpers explain a failed assert as tests do."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.register_assert_rewrite(f"{__package__}.matrix", f"{__package__}.numbers")

# they hold no doctests, and where their library is missing, what pytest has imported of them would stay half imported
collect_ignore_glob = ["modules_*.py"]
