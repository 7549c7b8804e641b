"""Every node has a name of its own."""

from lightning_robust.deployment.graph.names import with_names

from ..graphs import chain


def test_names_that_are_missing_or_shared_become_free_ones():
    model = chain(("Exp", None), ("Abs", None), ("Exp", None), ("Abs", None))
    for node, name in zip(model.graph.node, ("", "a", "a", "a_2"), strict=True):
        node.name = name
    named = with_names(model)
    assert [node.name for node in named.graph.node] == ["Exp_0", "a", "a_2_", "a_2"]
    assert [node.name for node in model.graph.node] == ["", "a", "a", "a_2"]


def test_a_model_with_names_is_not_copied():
    model = chain(("Exp", None), ("Abs", None))
    assert with_names(model) is model
