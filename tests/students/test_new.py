"""A new student knows the questions and categories of its data, and has a tokenizer for them."""

import pytest
import torch
from support.vision_models import MODELS, save_vision

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.students.new import new_student

SHAPES = "hidden_size=16,intermediate_size=32,num_image_layers=1,num_text_layers=1"
ANSWER = "zirconia nanoplatelets"
ROWS = [
    {
        "scale_bar": "730 nm",
        "qa": [
            {"question_id": "kind", "question": "Which kind?", "answer": ANSWER, "outcome": "ok"},
            {
                "question_id": "size",
                "question": "Large?",
                "answer": "xyz",
                "outcome": "refused",
            },
        ],
    },
    {"scale_bar": None, "qa": []},
] * 4
KNOWN = {name: CATEGORY_CAPTIONS[name] for name in ("Tips", "Fibres")}


def make(captions=KNOWN, **settings):
    return new_student(ROWS, captions, config_overrides=SHAPES, vocab_size=400, **settings)


def test_questions_are_those_of_the_data_and_categories_where_they_are_its_own():
    student = make()
    assert student.config.questions == {"kind": "Which kind?", "size": "Large?"}
    assert student.config.categories == CATEGORY_CAPTIONS
    assert student.config.hidden_size == 16
    own = {"Lot 7": "A micrograph of lot 7.", **KNOWN}
    assert make(own).config.categories == own


def test_the_tokenizer_is_trained_on_the_answers_that_may_be_trained_on():
    tokenizer = make().processor.tokenizer
    assert len(tokenizer) <= 400
    words = [len(tokenizer.tokenize(text)) for text in (ANSWER, "ytterbium nanopyramids")]
    assert words[0] < words[1] / 2


def test_an_encoder_with_a_tokenizer_takes_no_other(tmp_path):
    with pytest.raises(ValueError, match="--text brings its own tokenizer: leave --tokenizer out"):
        make(text="bert", tokenizer=str(tmp_path))


def test_hidden_states_of_the_vision_model_are_put_together(tmp_path):
    save_vision(tmp_path / "vit", MODELS["vit"]())
    student = make(vision=str(tmp_path / "vit"), vision_layers=[1, 2]).eval()
    pixels = torch.rand(1, 3, student.config.image_size, student.config.image_size)
    vit = student.image_encoder.vision_model
    states = vit(pixel_values=pixels, output_hidden_states=True).hidden_states
    expected = torch.cat([states[1], states[2]], dim=-1)
    torch.testing.assert_close(student.image_encoder.features(pixels), expected)
