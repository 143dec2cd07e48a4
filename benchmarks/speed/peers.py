"""BLIP of transformers in the shapes of a preset, as its users run it and as favourably as it goes.

What is special about it:
- "BLIP" is what its public calls do: `forward` and `generate` take one image per question, so an
  image with four questions is given, and encoded, four times;
- "BLIP, parts" calls its public submodules by hand: each image is encoded once, and padding of a
  question is masked in the decoder, which `generate` forgets. It has no further use of the API;
- three losses need two BLIPs (retrieval, question answering), which share the vision model and the
  text encoder here. ITM is one packed pass, and negatives are mined as ours are. "BLIP" calls their
  `forward`, which encodes an image for ITC, for each text of ITM and for each question.

BLIP has no SDPA attention (transformers 5.24): both of its encoders and its decoder write the
attention out. Its decoder attends to the question states only, ours to image and question; it
has weights of its own, ours shares them. Both have no dropout.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    ViTConfig,
    ViTModel,
)

from configuration_mvaema import MVaEMaConfig


def blip_config(config: MVaEMaConfig) -> BlipConfig:
    """The same dimensions and the same special tokens."""
    shared = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "projection_dim": config.projection_dim,
    }
    text = {
        "num_hidden_layers": config.num_text_layers,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.dec_token_id,
        "eos_token_id": config.eos_token_id,
        "sep_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    vision = {
        "num_hidden_layers": config.num_image_layers,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    return BlipConfig(
        text_config=shared | text,
        vision_config=shared | vision,
        projection_dim=config.projection_dim,
        image_text_hidden_size=config.projection_dim,
    )


def answering(config: MVaEMaConfig) -> BlipForQuestionAnswering:
    return BlipForQuestionAnswering(blip_config(config))


def retrieval(config: MVaEMaConfig) -> BlipForImageTextRetrieval:
    return BlipForImageTextRetrieval(blip_config(config))


def image_part(config: MVaEMaConfig) -> ViTModel:
    return ViTModel(
        ViTConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_hidden_layers=config.num_image_layers,
            image_size=config.image_size,
            patch_size=config.patch_size,
        ),
        add_pooling_layer=False,
    )


def text_part(config: MVaEMaConfig) -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_hidden_layers=config.num_text_layers,
            max_position_embeddings=config.max_position_embeddings,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )


def answer_inputs(batch: dict[str, Tensor], config: MVaEMaConfig) -> dict[str, Tensor]:
    """What the decoder is taught: [DEC] and the answer, of which BLIP itself shifts the labels.

    `labels` alone would serve as the decoder's input too, and could not hold -100 for padding.
    """
    start = torch.full_like(batch["labels"][:, :1], config.dec_token_id)
    labels = torch.cat([start, batch["labels"]], dim=1)
    mask = labels != -100
    return {
        "input_ids": labels.masked_fill(~mask, config.pad_token_id),
        "attention_mask": mask.long(),
        "labels": labels,
    }


def vqa_loss(model: BlipForQuestionAnswering, batch: dict, config: MVaEMaConfig) -> Tensor:
    """The LM loss by the public call: one image per question."""
    answers = answer_inputs(batch, config)
    repeats = len(batch["input_ids"]) // len(batch["pixel_values"])
    return model(
        pixel_values=batch["pixel_values"].repeat_interleave(repeats, dim=0),
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=answers["input_ids"],
        decoder_attention_mask=answers["attention_mask"],
        labels=answers["labels"],
    ).loss


def lm_loss(model: BlipForQuestionAnswering, states: Tensor, batch: dict, config) -> Tensor:
    """The LM loss by parts, from image states (images, 1 + patches, hidden_size)."""
    memory = question_states(model, states, batch["input_ids"], batch["attention_mask"])
    return model.text_decoder(
        encoder_hidden_states=memory,
        encoder_attention_mask=batch["attention_mask"],
        **answer_inputs(batch, config),
    ).loss


def question_states(
    model: BlipForQuestionAnswering, states: Tensor, input_ids: Tensor, mask: Tensor
) -> Tensor:
    """Grounded question states; consecutive questions share an image."""
    return model.text_encoder(
        input_ids=input_ids,
        attention_mask=mask,
        encoder_hidden_states=states.repeat_interleave(len(input_ids) // len(states), dim=0),
    ).last_hidden_state


class AssembledBlip(nn.Module):
    """ITC, ITM and LM on two statements and some questions per micrograph, as our three losses.

    Args:
        by_parts: encode each image once, instead of by public calls only.
    """

    def __init__(self, config: MVaEMaConfig, by_parts: bool):
        super().__init__()
        self.config, self.by_parts = config, by_parts
        self.retrieval, self.vqa = retrieval(config), answering(config)
        self.vqa.vision_model = self.retrieval.vision_model
        self.vqa.text_encoder = self.retrieval.text_encoder
        self.log_temperature = nn.Parameter(torch.tensor(config.initial_temperature).log())

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        pixel_values, ids, mask = (
            batch[name] for name in ("pixel_values", "statement_ids", "statement_mask")
        )
        model = self.retrieval
        if not self.by_parts:
            similarity = model(
                pixel_values=pixel_values,
                input_ids=ids,
                attention_mask=mask,
                use_itm_head=False,
            ).itm_score

            def match(index, **text):
                return model(pixel_values=pixel_values[index], **text).itm_score

            pair_loss = self._pair_loss(similarity, ids, mask, match)
            return pair_loss + vqa_loss(self.vqa, batch, self.config)

        states = model.vision_model(pixel_values).last_hidden_state
        texts = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        texts = nn.functional.normalize(model.text_proj(texts[:, 0]), dim=-1)
        images = nn.functional.normalize(model.vision_proj(states[:, 0]), dim=-1)

        def match(index, **text):
            grounded = model.text_encoder(encoder_hidden_states=states[index], **text)
            return model.itm_head(grounded.last_hidden_state[:, 0])

        pair_loss = self._pair_loss(images @ texts.T, ids, mask, match)
        return pair_loss + lm_loss(self.vqa, states, batch, self.config)

    def _pair_loss(self, similarity: Tensor, ids: Tensor, mask: Tensor, match: Callable) -> Tensor:
        """ITC and ITM.

        Args:
            similarity: (images, statements), cosines.
            match: (index of the image of each text, **text) -> ITM logits (texts, 2).
        """
        repeats = len(ids) // len(similarity)
        similarity = similarity.repeat_interleave(repeats, dim=0) / self.log_temperature.exp()
        image_of = torch.arange(len(ids), device=ids.device) // repeats
        positive = image_of.unsqueeze(1) == image_of.unsqueeze(0)
        target = positive / positive.sum(dim=1, keepdim=True)
        itc = nn.functional.cross_entropy(similarity, target)
        itc = (itc + nn.functional.cross_entropy(similarity.T, target)) / 2

        # As in BLIP's own training: drawn by similarity among what does not belong together.
        with torch.no_grad():
            chances = [
                s.float().softmax(dim=1).masked_fill(positive, 0) + 1e-12 * ~positive
                for s in (similarity, similarity.T)
            ]
            text, image = (torch.multinomial(chance, 1).squeeze(1) for chance in chances)
        logits = match(
            torch.cat([image_of, image_of, image_of[image]]),
            input_ids=torch.cat([ids, ids[text], ids]),
            attention_mask=torch.cat([mask, mask[text], mask]),
        )
        matching = torch.zeros(len(logits), dtype=torch.long, device=ids.device)
        matching[: len(ids)] = 1
        return itc + nn.functional.cross_entropy(logits, matching)
