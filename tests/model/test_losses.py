"""The losses against naive formulas, pair by pair and word by word."""

import math

import numpy as np
import pytest
import torch

from generation_mvaema import MVaEMaMemory
from losses_mvaema import mine_negatives, pair_noise


def close(a, b, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-5)


def naive_itc(images, texts, temperature):
    """The paper's formula, pair by pair."""
    count = len(images)
    total = 0.0
    for i in range(count):
        image_row = [math.exp(float(images[i] @ texts[j]) / temperature) for j in range(count)]
        text_row = [math.exp(float(images[j] @ texts[i]) / temperature) for j in range(count)]
        total -= 0.5 * (math.log(image_row[i] / sum(image_row)))
        total -= 0.5 * (math.log(text_row[i] / sum(text_row)))
    return total / count


def test_itc_is_the_papers_formula_when_all_texts_differ(model, batch):
    output = model(**batch)
    embeds = output.image_embeds.detach(), output.text_embeds.detach()
    expected = naive_itc(*embeds, model.temperature.item())
    assert output.itc_loss.item() == pytest.approx(expected, abs=1e-5)


def test_itc_takes_equal_texts_and_equal_images_as_positives(model, processor, batch):
    """Texts 0 and 2 are equal, images 1 and 3 are declared the same."""
    statements = processor(statements=["a film", "wires", "a film", "something longer by far"])
    output = model(
        pixel_values=batch["pixel_values"], image_ids=torch.tensor([7, 8, 9, 8]), **statements
    )
    positives = [{0, 2}, {1, 3}, {0, 2}, {1, 3}]
    similarity = (output.image_embeds @ output.text_embeds.T / model.temperature).detach().numpy()
    total = 0.0
    for matrix in (similarity, similarity.T):
        for i, row in enumerate(matrix.astype(float)):
            log_p = row - np.log(np.exp(row).sum())
            total -= np.mean([log_p[j] for j in positives[i]]) / 2
    assert output.itc_loss.item() == pytest.approx(total / 4, abs=1e-5)


def test_plain_itc_knows_no_other_positives(make_model, processor, batch):
    """With equal texts and images too, `multi_positive=False` is the paper's formula."""
    model = make_model(multi_positive=False)
    statements = processor(statements=["a film", "wires", "a film", "something longer by far"])
    images = {"pixel_values": batch["pixel_values"], "image_ids": torch.tensor([7, 8, 9, 8])}
    output = model(**images, **statements)
    embeds = output.image_embeds.detach(), output.text_embeds.detach()
    expected = naive_itc(*embeds, model.temperature.item())
    assert output.itc_loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.itc_loss.item() != pytest.approx(
        make_model()(**images, **statements).itc_loss.item(), abs=1e-3
    )


def test_several_statements_about_one_image_are_no_negatives(model, processor, batch):
    """Two statements per image equal the same four pairs, written out with repeated images."""
    statements = processor(statements=["wires", "a film", "a tip", "pores"])
    pixels = batch["pixel_values"][:2]
    short = model(pixel_values=pixels, **statements)
    long = model(
        pixel_values=pixels.repeat_interleave(2, 0),
        image_ids=torch.tensor([0, 0, 1, 1]),
        **statements,
    )
    close(short.itc_loss, long.itc_loss)
    close(short.itm_loss, long.itm_loss)


def test_a_text_that_equals_any_text_of_an_image_is_no_negative_of_it(model, processor, batch):
    """Images 0 and 1 share a caption; each has an answer of its own. Image 2 shares nothing."""
    texts = ["wires", "long ones", "wires", "short ones", "a film", "a cracked one"]
    output = model(pixel_values=batch["pixel_values"][:3], **processor(statements=texts))
    positives = {0: {0, 1, 2}, 1: {0, 2, 3}, 2: {4, 5}}
    images = output.image_embeds.repeat_interleave(2, dim=0)
    similarity = (images @ output.text_embeds.T / model.temperature).detach().numpy().astype(float)
    total = 0.0
    for i in range(6):
        log_p = similarity[i] - np.log(np.exp(similarity[i]).sum())
        total -= np.mean([log_p[j] for j in positives[i // 2]]) / 2
        of_text = [j for j in range(6) if i in positives[j // 2]]
        log_p = similarity[:, i] - np.log(np.exp(similarity[:, i]).sum())
        total -= np.mean([log_p[j] for j in of_text]) / 2
    assert output.itc_loss.item() == pytest.approx(total / 6, abs=1e-5)


def test_itm_is_binary_cross_entropy_with_the_hardest_negatives(model, batch):
    """Drawn by similarity: at the lowest temperature noise hardly matters."""
    with torch.no_grad():
        model.log_temperature.fill_(math.log(1e-4))
    output = model(**batch)
    states = model.image_encoder(batch["pixel_values"])
    ids, mask = batch["statement_ids"], batch["statement_mask"]
    similarity = (output.image_embeds @ output.text_embeds.T).detach()

    def p(image, text):
        logit = model.match(states[image][None], ids[text][None], mask[text][None])
        return 1 / (1 + math.exp(-float(logit)))

    terms = []
    for i in range(4):
        others = [j for j in range(4) if j != i]
        terms.append(-math.log(p(i, i)))
        terms.append(-math.log(1 - p(i, max(others, key=lambda j: similarity[i, j]))))
        terms.append(-math.log(1 - p(max(others, key=lambda j: similarity[j, i]), i)))
    assert output.itm_loss.item() == pytest.approx(sum(terms) / 12, abs=1e-5)


def test_negatives_are_drawn_by_similarity_and_never_positives():
    """Over many pairs of keys the draws follow the softmax of the similarities."""
    similarity = torch.tensor([0.0, 1.0, 2.0, 5.0]).expand(20_000, 4)
    positives = torch.tensor([False, False, False, True]).expand(20_000, 4)
    noise = pair_noise(torch.arange(20_000), torch.tensor([3, 1, 4, 159]))
    index, found = mine_negatives(similarity, positives, noise)
    assert found.all()
    shares = torch.bincount(index, minlength=4) / len(index)
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    close(shares, torch.cat([expected, torch.zeros(1)]), atol=0.01)
    assert torch.equal(noise, pair_noise(torch.arange(20_000), torch.tensor([3, 1, 4, 159])))
    # Neither neighbouring rows nor neighbouring columns are alike.
    assert np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1] == pytest.approx(0, abs=0.03)
    assert np.corrcoef(noise[:, 0], noise[:, 1])[0, 1] == pytest.approx(0, abs=0.03)


def test_itm_without_any_negative_counts_the_matching_pairs_only(model, processor, images):
    output = model(**processor(images=images[0], statements="a film"))
    states = model.image_encoder(processor(images=images[0])["pixel_values"])
    text = processor(statements="a film")
    logit = model.match(states, text["statement_ids"], text["statement_mask"])
    close(output.itm_loss, -torch.nn.functional.logsigmoid(logit)[0])
    close(output.itc_loss, torch.tensor(0.0))


def test_lm_loss_is_the_negative_log_likelihood_of_the_answers(model, batch):
    """Word by word, each from a decoder call that has seen only its predecessors."""
    output = model(**batch)
    memory = output.encoder_last_hidden_state
    losses = []
    for row, labels in enumerate(batch["labels"]):
        words = [int(w) for w in labels if w != -100]
        assert words[-1] == model.config.eos_token_id
        for i, word in enumerate(words):
            prefix = torch.tensor([[model.config.dec_token_id, *words[:i]]])
            of_row = MVaEMaMemory(memory[row : row + 1])
            logits = model.decode(prefix, of_row, batch["attention_mask"][row : row + 1])
            losses.append(-float(logits[0, -1].log_softmax(-1)[word]))
    assert output.lm_loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_loss_is_the_weighted_sum(make_model, batch):
    output = make_model(itc_weight=0.5, itm_weight=2.0, lm_weight=3.0)(**batch)
    close(output.loss, 0.5 * output.itc_loss + 2.0 * output.itm_loss + 3.0 * output.lm_loss)


@pytest.mark.parametrize("name", ["itc", "itm", "lm"])
def test_a_loss_of_weight_zero_is_off(make_model, batch, name):
    output = make_model(**{f"{name}_weight": 0})(**batch)
    assert getattr(output, f"{name}_loss") is None
    others = [output[f"{n}_loss"] for n in ("itc", "itm", "lm") if n != name]
    close(output.loss, sum(others))
