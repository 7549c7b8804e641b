"""Which errors are about what was given, and what is said about them."""

import pytest
from torch import nn

from lightning_robust.checks import check_positive
from lightning_robust.complaints import can_be_mended, is_about_arguments, naming, sentence


def caught(function):
    try:
        function()
    except Exception as error:
        # from the frame of the function on, as an entrance sees it that is no user's
        return error.with_traceback(error.__traceback__.tb_next)
    raise AssertionError("nothing was raised")


def test_a_sentence_of_the_package_is_about_the_arguments_unless_code_of_the_user_was_running():
    error = caught(lambda: check_positive(steps=0))
    assert not is_about_arguments(error)  # this file is a user's
    assert is_about_arguments(error.with_traceback(error.__traceback__.tb_next))


def test_what_nobody_raised_on_purpose_is_a_fault_of_the_code():
    assert not is_about_arguments(ZeroDivisionError("integer modulo by zero"))
    assert not is_about_arguments(ValueError("raised nowhere"))


@pytest.mark.parametrize(
    ("error", "mended"),
    [
        (ValueError("a"), True),
        (OSError("a"), True),
        (EOFError(), True),
        (KeyError("a"), False),
        (IndexError("a"), False),
    ],
)
def test_kinds(error, mended):
    assert can_be_mended(error) is mended
    assert "\n" not in sentence(error)


def test_a_file_is_named_once():
    with pytest.raises(ValueError, match=r"^a\.npz: Expected b$"), naming("a.npz"):
        raise ValueError("Expected b")
    with pytest.raises(ValueError, match=r"^Expected b in a\.npz$"), naming("a.npz"):
        raise ValueError("Expected b in a.npz")
    with pytest.raises(KeyError), naming("a.npz"):
        raise KeyError("b")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5)), "0.weight has shape (5, 2) for (3, 2) (and 3 more)"),
        (nn.Sequential(nn.Linear(2, 3)), "it lacks 1.weight (and 1 more)"),
        (
            nn.Sequential(nn.Linear(2, 3, bias=False), nn.LayerNorm(3), nn.PReLU()),
            "it lacks 0.bias, it has besides 2.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_short_sentence(given, told):
    """Of what torch says, however many tensors it lists."""
    error = caught(lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).load_state_dict(given.state_dict()))
    advice = "Build the model with the arguments of that file's training."
    assert sentence(error) == f"Expected a checkpoint of this Sequential, but {told}. {advice}"
