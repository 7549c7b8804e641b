"""No download in this room; its helpers explain a failed assert as tests do."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.register_assert_rewrite(f"{__package__}.matrix", f"{__package__}.numbers")
