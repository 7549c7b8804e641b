"""Places of nodes: the user's own lines and no others."""

import inspect
import linecache
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_robust
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.origin import Origin, user_line

from .. import models
from ..models import OverflowingNorm, images

PACKAGE = Path(lightning_robust.__file__).parent


def line_of(module, text):
    """Its number in the file that the module was read from."""
    return next(i for i, line in enumerate(inspect.getsource(module).splitlines(), 1) if text in line)


def test_places_are_lines_of_the_user_with_what_stands_there():
    exported = export(frozen_copy(OverflowingNorm()), (images(2),))
    operators = {node.op_type: node for node in exported.model.graph.node}
    text = "variance = centred.pow(2).mean(1, keepdim=True)"
    place = f"models.py:{line_of(models, text)}"
    assert exported.origins[operators["Pow"].name] == Origin("", place, text)
    assert exported.origins[operators["Pow"].name].place("Pow") == f"{place} Pow ({text})"
    assert b"variance" not in exported.model.SerializeToString()


def test_a_sequential_has_no_line_of_this_library():
    """Nobody but torch and the export's own wrapper calls its layers."""
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()), nn.Flatten())
    exported = export(frozen_copy(module), (images(2),))
    assert {origin.source for origin in exported.origins.values()} == {""}
    places = {exported.origins[node.name].place(node.op_type) for node in exported.model.graph.node}
    assert {"Conv in 0.0", "Sigmoid in 0.1", "Mul in 0.1"} <= places


@pytest.mark.parametrize(
    "path",
    [
        PACKAGE / "deployment/graph/export.py",
        PACKAGE / "mixins/regmixup.py",
        Path(torch.__file__).parent / "nn/modules/conv.py",
        Path("/opt/lib/python3.11/site-packages/timm/models/vgg.py"),
        Path("<string>"),
    ],
)
def test_frames_that_are_not_the_users(path):
    users = f'File "{__file__}", line 1, in forward\n  File "{path}", line 20, in forward'
    assert user_line(users) == ("test_origin.py:1", '"""Places of nodes: the user\'s own lines and no others."""')
    assert user_line(f'File "{path}", line 20, in forward') == ("", "")


def test_the_demo_is_a_users_model():
    demo = PACKAGE / "demo/__init__.py"
    assert user_line(f'File "{demo}", line 1, in forward')[0] == "__init__.py:1"


def test_long_lines_are_cut_and_unknown_files_have_no_text(tmp_path):
    long = tmp_path / "neck.py"
    long.write_text(f"    y = {'x + ' * 40}x\n")
    source, text = user_line(f'File "{long}", line 1, in forward')
    assert (source, len(text), text[:9], text[-5:]) == ("neck.py:1", 72, "y = x + x", " x...")
    linecache.clearcache()
    assert user_line('File "/gone/neck.py", line 7, in forward') == ("neck.py:7", "")
