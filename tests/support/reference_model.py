"""MVaEMa written naively, as its specification: one image and one text at a time, nothing packed,
padded, cached or shared. Texts are lists of token ids, images (channels, height, width), states
(length, d); the weights are those of the `MVaEMaModel` that it is compared with."""

import math

import torch


def attend(layer, x, memory, hidden=None):
    """Multi-head attention of x over memory; what is `hidden` (bool) is not attended to."""
    heads = (layer.config.num_attention_heads, -1)
    q, k, v = (
        proj(states).unflatten(1, heads).transpose(0, 1)
        for proj, states in ((layer.q_proj, x), (layer.k_proj, memory), (layer.v_proj, memory))
    )
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return layer.o_proj((scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))


def encode_image(model, pixels, instruction=None):
    """V: a pre-norm ViT."""
    vit, size = model.image_encoder, model.config.patch_size
    patches = pixels.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4)
    patches = patches.flatten(2).flatten(0, 1) @ vit.patch_embedding.weight.flatten(1).T
    patches = torch.cat([vit.cls_token[0], patches + vit.patch_embedding.bias])
    x = patches + vit.position_embeddings[0]
    if instruction is not None:
        x = torch.cat([x, vit.instruction_proj(instruction)[None]])
    for layer in vit.layers:
        normed = layer.self_attn_norm(x)
        x = x + attend(layer.self_attn, normed, normed)
        x = x + layer.mlp(layer.mlp_norm(x))
    return vit.norm(x)


def run_text(model, first, words, memory=None, causal=False):
    """States of a text, its first token replaced; the mode follows from memory and causal."""
    stack, config, places = model.text_stack, model.config, torch.arange(len(words))
    words = stack.word_embeddings(torch.tensor([first, *words[1:]]))
    x = stack.embedding_norm(words + stack.position_embeddings(places))
    future = places[None] > places[:, None] if config.use_causal_mask else None
    for layer in stack.layers:
        if causal:
            x = layer.causal_attn_norm(x + attend(layer.causal_attn, x, x, future))
        elif config.use_self_attention:
            x = layer.self_attn_norm(x + attend(layer.self_attn, x, x))
        if memory is not None and config.use_cross_attention:
            x = layer.cross_attn_norm(x + attend(layer.cross_attn, x, memory))
        x = layer.mlp_norm(x + layer.mlp(x))
    return x


def summary(model, first, words, memory=None):
    states = run_text(model, first, words, memory)
    return states[0] if model.config.use_self_attention else states.mean(dim=0)


def answer_logits(model, pixels, prompt, words):
    """Logits of the words that follow [DEC], words[0], ..., words[-2] in an answer to a prompt."""
    config, instruction = model.config, None
    if config.instruction_aware:
        instruction = summary(model, config.cls_token_id, prompt)
    v = encode_image(model, pixels, instruction)
    m = run_text(model, config.enc_token_id, prompt, v)
    inputs, memory = [None, *words[:-1]], torch.cat([v, m])
    states = run_text(model, config.dec_token_id, inputs, memory, causal=True)
    return states @ model.text_stack.word_embeddings.weight.T  # the head is tied to them


def lm_loss(model, pixels, prompts, answers):
    terms = []
    for image, prompt, words in zip(pixels, prompts, answers, strict=True):
        logs = answer_logits(model, image, prompt, words).log_softmax(dim=1)
        terms += [-step[word] for step, word in zip(logs, words, strict=True)]
    return sum(terms) / len(terms)


def pair_losses(model, pixels, statements, negatives):
    """ITC and ITM, a statement per image; `negatives` are (wrong texts, wrong images) by number."""
    config, numbers = model.config, range(len(pixels))
    states = [encode_image(model, image) for image in pixels]
    images = [model.image_proj(v[0]) for v in states]
    texts = [model.text_proj(summary(model, config.cls_token_id, s)) for s in statements]
    images, texts = (torch.stack([x / x.norm() for x in vectors]) for vectors in (images, texts))
    sim = images @ texts.T / model.temperature
    fits = torch.tensor([[statements[i] == statements[j] for j in numbers] for i in numbers])
    itc = [-s.log_softmax(0)[fits[i]].mean() for i in numbers for s in (sim[i], sim[:, i])]

    def p(image, text):
        state = summary(model, config.enc_token_id, statements[text], states[image])
        return model.itm_head(state)[0].sigmoid()

    itm = [-p(i, i).log() for i in numbers]
    itm += [-(1 - p(i, negatives[0][i])).log() for i in numbers]
    itm += [-(1 - p(negatives[1][i], i)).log() for i in numbers]
    return sum(itc) / len(itc), sum(itm) / len(itm)
