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
from mvaema.evaluation.choices import ANY, Choices
from mvaema.evaluation.collect import collect
from mvaema.evaluation.conditions import CAPTION, PLAIN
from mvaema.evaluation.questions import key_of
from mvaema.evaluation.scores import score
from mvaema.evaluation.sight import sight_records
from mvaema.evaluation.verdict import verdict, verdict_lines
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
    assert figures["classification"] == figures["support"] == {} and collected.attention == []
    for name in ("llava", "nearest image's answer"):
        assert figures["answers"][name]["overall"]["n"] == 18


@pytest.mark.slow
def test_a_chat_model_is_measured_as_a_student_is(asked, sights, tmp_path):
    folder = save_llava(tmp_path / "llava")
    llava = load_answerer(str(folder), max_new_tokens=2, batch_size=4)
    collected = collect(llava, asked, tmp_path / "report", classify=False)
    figures, _ = score(asked, collected, "llava", synonyms=False)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    references = {key_of(r): r["reference"] for r in asked.records}
    stop = model.generation_config.eos_token_id

    def loss(image: Image.Image, record: dict, answer: str, scale: str = "") -> tuple[float, int]:
        """Of one answer, by the model's own loss."""
        text = f"USER: <image>{scale}{record['question']} ASSISTANT:"
        inputs = processor(images=image.convert("RGB"), text=text, return_tensors="pt")
        ids = torch.tensor([[*processor.tokenizer(answer)["input_ids"], stop]])
        prompt = inputs["input_ids"]
        inputs["input_ids"] = torch.cat([prompt, ids], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        labels = torch.cat([torch.full_like(prompt, -100), ids], dim=1)
        with torch.no_grad():
            return float(model(**inputs, labels=labels).loss) * ids.shape[1], ids.shape[1]

    gain = own = count = right = 0.0
    block_of, partners = Choices.draw(asked).blocks[ANY], Choices.draw(asked).partners
    for record in asked.records[:8]:
        image_id, question_id = key_of(record)
        number = int(image_id.removeprefix("image"))
        image = Image.open(sights / "validation" / f"{number}.png")
        blank = Image.new("L", image.size, 128)
        shown = int(partners[image_id].removeprefix("image"))
        other = Image.open(sights / "validation" / f"{shown}.png")
        scale = f"The scale bar marks {number + 1} µm. "
        (seen, tokens), (alone, _), (of_other, _) = (
            loss(i, record, record["reference"], scale) for i in (image, blank, other)
        )
        gain, own, count = gain + alone - seen, own + of_other - seen, count + tokens
        added = {
            i: loss(blank, record, text)[0] - loss(image, record, text)[0]
            for i in block_of[key_of(record)]
            for text in (references[i, question_id],)
        }
        right += max(added, key=added.get) == image_id
    first = {key_of(record) for record in asked.records[:8]}
    part = [
        r for r in sight_records(asked, collected, Choices.draw(asked), PLAIN) if key_of(r) in first
    ]
    scores = [record["scores"] for record in part]
    assert sum(s["image_gain"] for s in scores) == pytest.approx(gain, abs=1e-2)
    assert sum(s["own_gain"] for s in scores) == pytest.approx(own, abs=1e-2)
    assert sum(s["tokens"] for s in scores) == count
    assert sum(s["answer_gain_top_1"] for s in scores) == right
    assert abs(gain) > 0.1 and abs(own) > 0.1
    twin = figures["sight"]["llava, blank image"]["overall"]["scores"]
    assert twin["image_gain"]["mean"] == pytest.approx(0, abs=1e-3)
    for way in ("likelihood", "gain"):
        assert twin[f"answer_{way}_top_1"]["mean"] == pytest.approx(1 / 8, abs=0.02)
    said = {line.strip() for line in verdict_lines(verdict(figures))}
    assert any(
        "likelihood minus blank image's" in line and "guessing: 12.5" in line for line in said
    )
    assert any("nats per token over a blank image" in line for line in said)


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
