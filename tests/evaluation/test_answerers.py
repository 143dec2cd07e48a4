"""Students, adapters and chat models, each asked the same prompts."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from support.tiny_llava import TEMPLATE, save_llava
from support.tiny_student import MAX_NEW_TOKENS
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    BertModel,
)

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.collect import collect
from mvaema.evaluation.conditions import CAPTION
from mvaema.evaluation.scores import score
from mvaema.evaluation.sight_tables import twins_table
from mvaema.students.loading import weights_fingerprint


def test_a_chat_model_is_asked_the_same_prompts(dataset, questions, tmp_path):
    folder = save_llava(tmp_path / "llava")
    llava = load_answerer(str(folder), max_new_tokens=MAX_NEW_TOKENS, batch_size=4)
    collected = collect(llava, questions, tmp_path / "report")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    answers = {}
    for record in (r for r in collected.answers if r["condition"] == CAPTION):
        number = int(record["image_id"].removeprefix("image"))
        caption = CATEGORY_CAPTIONS[record["category"]]
        scale = " The scale bar marks 1 µm." if number % 3 else ""
        image = Image.open(dataset / "validation" / f"{number}.png").convert("RGB")
        # One prompt by itself, without a chat template and without padding.
        inputs = processor(
            images=image,
            text=f"USER: <image>{caption}{scale} {record['question']} ASSISTANT:",
            return_tensors="pt",
        )
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers[number, record["question_id"]] = (record["prediction"], text.strip())
    assert len(answers) == 18 and all(found == expected for found, expected in answers.values())
    assert len({found for found, _ in answers.values()}) > 3
    figures, _ = score(questions, collected, "llava", synonyms=False)
    assert figures["classification"] == {}
    # It gives no likelihoods that could be compared; that is said, and no error.
    assert collected.likelihoods == [] and figures["sight"] == figures["support"] == {}
    assert "not measured" in twins_table(figures).note
    for name in ("llava", "nearest image's answer"):
        assert figures["answers"][name]["overall"]["n"] == 18


def test_a_chat_template_can_be_given(tmp_path):
    folder = save_llava(tmp_path / "llava", template=None)
    with pytest.raises(ValueError, match=r"llava is not an MVaEMa model .* no chat template"):
        load_answerer(str(folder))
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    chat = load_answerer(str(folder), chat_template=str(template), max_new_tokens=2)
    assert chat.settings == {"max_new_tokens": 2, "chat_template": TEMPLATE}
    image = Image.new("L", (40, 40), 7)
    (answers,) = chat.answer([image], ["What is it?", "How large?"], [None], [None], [None])
    assert len(answers) == 2


def test_models_that_cannot_be_asked(tmp_path):
    shapes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    BertModel(BertConfig(**shapes, intermediate_size=8)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert.* neither an MVaEMa model nor"):
        load_answerer(str(tmp_path / "bert"))
    with pytest.raises(OSError, match="nowhere"):
        load_answerer(str(tmp_path / "nowhere"))


def test_a_lora_adapter_answers_with_its_base(student, tmp_path):
    base = AutoModel.from_pretrained(student, trust_remote_code=True)
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    image = Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50).astype(np.uint8))
    with torch.no_grad():
        pixels = base.processor(images=image)["pixel_values"]
        expected = tuned.get_image_features(pixels).pooler_output[0].numpy()
    adapted, plain = (load_answerer(str(f)) for f in (tmp_path / "adapter", student))
    assert adapted.embed([image])[0] == pytest.approx(expected, abs=1e-5)
    assert plain.embed([image])[0] != pytest.approx(expected, abs=1e-2)
    assert weights_fingerprint(adapted.model) != weights_fingerprint(plain.model)


def test_a_students_own_questions_and_categories(student, answerer):
    config = json.loads((student / "config.json").read_text())
    assert answerer.questions == config["questions"]
    assert answerer.categories == config["categories"]
    assert answerer.methods == ("ITC", "ITM", "LM", "ITC+ITM")


def test_how_a_student_decodes_can_be_chosen(student, answerer):
    image = Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50).astype(np.uint8))
    asked = ([image], ["What is it?", "How large?"], [None], [None], [None])
    found = {}
    for decoding in ("greedy", "beam", "sample", "contrast"):
        chosen = load_answerer(str(student), max_new_tokens=MAX_NEW_TOKENS, decoding=decoding)
        assert chosen.settings["decoding"] == decoding
        (found[decoding],) = chosen.answer(*asked)
        assert chosen.answer(*asked) == [found[decoding]]
        options = {"decoding": decoding, "max_new_tokens": MAX_NEW_TOKENS}
        assert found[decoding] == chosen.model.answer(image, asked[1], **options)
    assert len(set(map(tuple, found.values()))) == 4
    own = answerer.model.default_decoding
    assert answerer.settings["decoding"] == own
    if own in found:
        assert answerer.answer(*asked) == [found[own]]


def test_decodings_that_a_model_does_not_have(student, tmp_path):
    with pytest.raises(ValueError, match="decoding must be one of"):
        load_answerer(str(student), decoding="best")
    llava = str(save_llava(tmp_path / "llava"))
    with pytest.raises(ValueError, match=r"llava is not an MVaEMa model.*'consensus'"):
        load_answerer(llava, decoding="consensus")
    assert "decoding" not in load_answerer(llava, decoding="greedy").settings


def test_one_weight_changes_the_fingerprint(student):
    model = load_answerer(str(student)).model
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(load_answerer(str(student)).model)
    with torch.no_grad():
        model.itm_head.bias += 1
    assert weights_fingerprint(model) != before
