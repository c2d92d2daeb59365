"""What pydantic finds wrong is told in the project's words, whatever the type."""

import pytest

from diffusion_core.problems import demand, hint


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Input should be a valid integer", "it must be a valid integer"),
        ("Input should be greater than or equal to 1", "it must be greater than or equal to 1"),
        ("String should have at most 200 characters", "it must have at most 200 characters"),
        (
            "List should have at least 1 item after validation, not 0",
            "it must have at least 1 item after validation, not 0",
        ),
        ("Extra inputs are not permitted", "extra inputs are not permitted"),
        ("JSON input is too long", "JSON input is too long"),
    ],
)
def test_a_message_says_what_must_be(message, told):
    assert demand(message) == told


@pytest.mark.parametrize(
    ("word", "names", "told"),
    [
        ("dimm", ["steps", "dim"], "did you mean dim? "),
        ("CAT", ["Dog", "Cat"], "did you mean Cat? "),
        ("recall", ["frechet", "precision_recall"], "did you mean precision_recall? "),
        ("12", ["1", "2", "122"], ""),
        (12, ["1", "2", "122"], ""),
        ("-12", ["-1", "-2"], ""),
        ("1.5", ["1", "2.5", "15"], ""),
        ("1e-4", ["1e-5"], ""),
        ("nothing", ["steps", "dim"], ""),
        ("a", ["steps", "bar"], ""),
        ("dim", [], ""),
    ],
)
def test_the_nearest_name_is_hinted_at_where_one_is_near(word, names, told):
    assert hint(word, names) == told
