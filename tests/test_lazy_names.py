"""Names of a package that are imported when they are asked for."""

import json
import sys
import types

import pytest

from lightning_robust.lazy_names import lazy_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that names one function, loaded by what gives no source, as pytest loads a plugin's package."""
    source = tmp_path / "__init__.py"
    source.write_text("if TYPE_CHECKING:\n    from json import dumps as dumps\n    from json import loads\n")
    module = types.ModuleType("a_package_of_a_test")
    module.__file__, module.__loader__ = str(source), object()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_names_that_are_passed_on_are_found_and_kept(package):
    find, listed, names = lazy_names(package.__name__)
    assert names == ["dumps"]
    assert "dumps" in listed()
    assert not hasattr(package, "dumps")
    assert find("dumps") is json.dumps is package.dumps


def test_other_names_are_no_attributes(package):
    find, _, _ = lazy_names(package.__name__)
    with pytest.raises(AttributeError, match="module 'a_package_of_a_test' has no attribute 'loads'"):
        find("loads")
