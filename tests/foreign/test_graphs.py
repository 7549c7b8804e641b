"""Every technique on the modules of ``modules_graphs.py``."""

import pytest

from .matrix import check_pair, pairs
from .modules_graphs import GUESTS

pytestmark = pytest.mark.foreign


@pairs(GUESTS)
def test_technique_on_a_module_nobody_here_wrote(guest, technique, tmp_path):
    check_pair(guest, technique, tmp_path)
