"""MVaEMa: a small encoder-decoder that answers questions about electron micrographs.

What is special about it:
- one text stack in three modes: text encoder, image-grounded text encoder, image-grounded text
  decoder (`layers_mvaema.py`);
- the decoder's memory is [V ; M]: image states and grounded question states side by side. Every
  word is conditioned on the image and on the question, P(w_i | w_<i, I, Q);
- the three losses (`losses_mvaema.py`) come from one encoding of each image, and each is in the
  output by name;
- n questions about each image are n consecutive rows of text. Images are encoded once, for all
  rows and modes. Gain on a CPU, training with LM and 4 questions: 1.3x (`paper`), 2.2x (`small`).

To read it: `MVaEMaModel.forward` puts the parts together. Generation, `answer` and `classify` are
in `generation_mvaema.py`.

This file travels with those that it imports: `save_pretrained` and `push_to_hub` copy all of them
into the model repository.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.versions import require_version

# Older versions give the decoder's cache another name, and every word would be the first.
require_version("transformers>=5.24", "Upgrade it: pip install -U transformers")

try:  # inside a model repository, where transformers loads this file as part of a package
    from .configuration_mvaema import MVaEMaConfig
    from .generation_mvaema import MVaEMaCache, MVaEMaGenerationMixin, MVaEMaMemory
    from .layers_mvaema import (
        KeysAndValues,
        Memory,
        MVaEMaTextStack,
        PackedTexts,
        Recorded,
    )
    from .losses_mvaema import (
        Pairs,
        gather,
        itc_loss,
        itm_loss,
        itm_negatives,
        lm_loss,
        lm_losses,
        row_numbers,
        shift_right,
        similarities,
        world_size,
    )
    from .vision_mvaema import MVaEMaImageEncoder, MVaEMaViT, image_encoder
except ImportError:  # from the project's root
    from configuration_mvaema import MVaEMaConfig
    from generation_mvaema import MVaEMaCache, MVaEMaGenerationMixin, MVaEMaMemory
    from layers_mvaema import (
        KeysAndValues,
        Memory,
        MVaEMaTextStack,
        PackedTexts,
        Recorded,
    )
    from losses_mvaema import (
        Pairs,
        gather,
        itc_loss,
        itm_loss,
        itm_negatives,
        lm_loss,
        lm_losses,
        row_numbers,
        shift_right,
        similarities,
        world_size,
    )
    from vision_mvaema import MVaEMaImageEncoder, MVaEMaViT, image_encoder


@dataclass
class MVaEMaOutput(ModelOutput):
    """
    What the model returns; a field is `None` when its inputs were not given.

    Args:
        loss (`Tensor` of shape `()`): weighted sum of the losses that were computed.
        itc_loss, itm_loss, lm_loss (`Tensor` of shape `()`): contrastive, matching and
            language-modelling loss, each a mean over the global batch, unweighted.
        logits (`Tensor` of shape `(batch, answer_length, vocab_size)`): decoder logits; `None` in
            training mode with labels, where the loss needs but a part of them.
        cache (`EncoderDecoderCache`): keys and values of the decoder.
        decoder_hidden_states (`tuple` of `Tensor` of shape `(batch, answer_length, hidden_size)`):
            with `output_hidden_states`, the embeddings and what each layer made of them.
        decoder_attentions (`tuple` of `Tensor` of shape `(batch, heads, answer_length, length)`):
            with `output_attentions`, the weights of each layer's self-attention.
        cross_attentions (`tuple` of `Tensor` of shape `(batch, heads, answer_length,
            memory_length)`): and of its attention to the memory [V ; M].
        encoder_last_hidden_state (`Tensor` of shape `(batch, memory_length, hidden_size)`): the
            decoder's memory [V ; M], image states followed by grounded question states.
        encoder_hidden_states, encoder_attentions (`tuple` of `Tensor`): of the image-grounded text
            encoder that reads the question, as those of the decoder.
        logits_per_image (`Tensor` of shape `(images, statements)`): similarity of each image and
            each statement of this process, divided by the temperature.
        image_embeds (`Tensor` of shape `(images, projection_dim)`): normalised image embeddings.
        text_embeds (`Tensor` of shape `(statements, projection_dim)`): normalised embeddings of
            the statements.
    """

    loss: Tensor | None = None
    itc_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    lm_loss: Tensor | None = None
    logits: Tensor | None = None
    cache: Cache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    logits_per_image: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


def either(name: str, value: Tensor | None, other: str, other_value: Tensor | None):
    """The one that was given, if any.

    Raises:
        ValueError: both were.
    """
    if value is not None and other_value is not None:
        raise ValueError(f"{name} and {other} were given: give one of the two.")
    return other_value if value is None else value


def until_last(mask: Tensor) -> Tensor:
    """True up to the last true value of each row: what is left out is padding."""
    return mask.flip(1).cumsum(1).flip(1) > 0


class MVaEMaPreTrainedModel(PreTrainedModel):
    config_class = MVaEMaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MVaEMaImageLayer", "MVaEMaTextLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, MVaEMaImageEncoder):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            if isinstance(module, MVaEMaViT):
                init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, MVaEMaModel):
            init.constant_(module.log_temperature, math.log(self.config.initial_temperature))


class MVaEMaModel(MVaEMaGenerationMixin, MVaEMaPreTrainedModel, GenerationMixin):
    """Embeds, matches, classifies and answers; trains with ITC, ITM and LM losses."""

    _tied_weights_keys = {"lm_head.weight": "text_stack.word_embeddings.weight"}

    def __init__(self, config: MVaEMaConfig):
        super().__init__(config)
        self.image_encoder = image_encoder(config)
        self.text_stack = MVaEMaTextStack(config)
        self.image_proj = nn.Linear(config.hidden_size, config.projection_dim)
        self.text_proj = nn.Linear(config.hidden_size, config.projection_dim)
        self.log_temperature = nn.Parameter(torch.zeros(1))  # FSDP shards no scalars
        self.itm_head = nn.Linear(config.hidden_size, 1)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.generation_config = GenerationConfig(
            decoder_start_token_id=config.dec_token_id,
            bos_token_id=config.dec_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            max_new_tokens=min(128, config.max_position_embeddings - 1),
            # Without the causal mask a cached prefix would miss its successors.
            use_cache=config.use_causal_mask,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """As in transformers, but a checkpoint that lacks a weight is an error.

        Raises:
            ValueError: weights are missing; transformers would draw them at random and warn. With
                `output_loading_info=True` the second value returned names them instead.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if info["missing_keys"] and not output_loading_info:
            raise ValueError(
                f"the checkpoint {pretrained_model_name_or_path} lacks {len(info['missing_keys'])} "
                f"weights, {', '.join(sorted(info['missing_keys'])[:5])} among them. It is "
                "incomplete, or it belongs to another configuration."
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As in transformers, with the processor beside the model: a complete repository.

        Without a processor (see `processor`) the model is saved alone.
        """
        hub = {name: kwargs[name] for name in ("repo_id", "token", "private") if name in kwargs}
        super().save_pretrained(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
        try:
            processor = self.processor
        except (OSError, ValueError):
            return
        if kwargs.get("is_main_process", True):
            processor.save_pretrained(save_directory, push_to_hub=push_to_hub, **hub)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """As in transformers, but a vision model that has no such attention keeps its own."""
        vision_model = getattr(self.image_encoder, "vision_model", None)
        if vision_model is not None and isinstance(attn_implementation, str):
            try:
                vision_model.get_correct_attn_implementation(attn_implementation)
            except ValueError:
                own = vision_model.config._attn_implementation
                attn_implementation = {"": attn_implementation, "vision_config": own}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_stack.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.text_stack.word_embeddings = value

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The decoder's inputs for labels (batch, length); collators and `Trainer` ask for it."""
        return shift_right(labels, self.config.dec_token_id, self.config.pad_token_id)

    @property
    def temperature(self) -> Tensor:
        """ITC temperature tau; not below 0.01, where CLIP clips it too."""
        return self.log_temperature.exp().clamp(min=0.01)

    # ---- parts -----------------------------------------------------------------------------------

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Images as ITC compares them.

        Args:
            pixel_values: (images, channels, height, width).

        Returns:
            `pooler_output`, the normalised embeddings (images, projection_dim), and
            `last_hidden_state` (images, 1 + patches, hidden_size); what else was asked for.
        """
        recorded = Recorded.asked_for(self.config, output_attentions, output_hidden_states)
        states = self.image_encoder(pixel_values, recorded=recorded)
        return self._features(states, self._project_image(states), recorded)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Texts as ITC compares them.

        Args:
            input_ids: (batch, length), and `attention_mask` of the same shape.

        Returns:
            `pooler_output`, the normalised embeddings (batch, projection_dim), and
            `last_hidden_state` (batch, length, hidden_size); what else was asked for.
        """
        recorded = Recorded.asked_for(self.config, output_attentions, output_hidden_states)
        ids = self._with_first(input_ids, self.config.cls_token_id)
        states, texts = self.text_stack(ids, attention_mask, recorded=recorded)
        pooled = self._project_text(self._summary(states, texts, attention_mask))
        return self._features(texts.unpack(states), pooled, recorded)

    def _features(
        self, states: Tensor, pooled: Tensor, recorded: Recorded | None
    ) -> BaseModelOutputWithPooling:
        recorded = recorded or Recorded()
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=pooled,
            hidden_states=recorded.hidden_states,
            attentions=recorded.attentions,
        )

    def match(
        self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """ITM logits (batch,): whether each text describes its image.

        Args:
            image_states: (images, 1 + patches, hidden_size), from `model.image_encoder`. With
                fewer images than texts, consecutive texts share an image.
            input_ids: (batch, length), and `attention_mask` of the same shape.
        """
        images = self.text_stack.project_images(image_states)
        memory = Memory(images, self._image_of_each(input_ids, image_states))
        return self._match(memory, input_ids, attention_mask)

    def encode_prompt(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_states: Tensor | None = None,
        images: tuple[KeysAndValues, ...] | None = None,
        features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MVaEMaMemory:
        """The decoder's memory [V ; M]: (batch, image tokens + length, hidden_size).

        Args:
            pixel_values: (images, channels, height, width). With fewer images than prompts,
                consecutive prompts share an image.
            input_ids: (batch, length), or embeddings of words, (batch, length, hidden_size).
            image_states: the images' states, where they have been computed already.
            images: and their keys and values (`text_stack.project_images`).
            features: what `image_encoder.features` made of the pixels, instead of them.

        Raises:
            ValueError: there are no images, or prompts cannot be shared out among them.
        """
        known = [x for x in (image_states, features, pixel_values) if x is not None]
        if not known:
            raise ValueError("pixel_values are missing: a question is about an image.")
        if input_ids is None:
            raise ValueError("input_ids are missing: an answer is to a question.")
        index = self._image_of_each(input_ids, known[0])
        if self.config.instruction_aware:  # each prompt has an image of its own
            ids = self._with_first(input_ids, self.config.cls_token_id)
            question = self._summary(*self.text_stack(ids, attention_mask), attention_mask)
            if features is None:
                features = self.image_encoder.features(pixel_values)
            features = features.index_select(0, index.to(features.device))
            image_states, images = self.image_encoder(None, question, features=features), None
            index = self._image_of_each(input_ids, image_states)
        elif image_states is None:
            image_states = self.image_encoder(pixel_values, features=features)
        if images is None:
            images = self.text_stack.project_images(image_states)
        recorded = Recorded.asked_for(self.config, output_attentions, output_hidden_states)
        ids = self._with_first(input_ids, self.config.enc_token_id)
        states, texts = self.text_stack(
            ids, attention_mask, Memory(images, index), recorded=recorded
        )
        questions = texts.unpack(states)
        image_states = image_states.index_select(0, index.to(image_states.device))
        memory = torch.cat([image_states.to(questions.device), questions], dim=1)
        recorded = recorded or Recorded()
        return MVaEMaMemory(memory, images, questions, recorded.hidden_states, recorded.attentions)

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: ModelOutput,
        attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decoder logits (batch, length, vocab_size) for ids that start with [DEC].

        Args:
            memory: from `encode_prompt`, or any output whose first field is [V ; M].
            attention_mask: (batch, prompt length), of the prompt inside the memory.
        """
        memory = self._decoder_memory(memory, attention_mask, cache)
        states, texts = self.text_stack(decoder_input_ids, None, memory, causal=True, cache=cache)
        return self.lm_head(texts.unpack(states))

    def answer_losses(
        self, labels: Tensor, memory: ModelOutput, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood of each token of given answers, in nats: (batch, length).

        Logits are computed for tokens that have a label only.

        Args:
            labels: (batch, length), -100 where ignored; the loss is 0 there.
            memory, attention_mask: as in `decode`.
        """
        memory = self._decoder_memory(memory, attention_mask, None)
        ids, needed = self.prepare_decoder_input_ids_from_labels(labels), until_last(labels != -100)
        states, texts = self.text_stack(ids, None, memory, causal=True, needed=needed)
        packed = texts.pack(labels)
        labelled = packed != -100
        losses = states.new_zeros(packed.shape, dtype=torch.float32)
        losses[labelled] = lm_losses(self.lm_head(states[labelled]), packed[labelled])
        return texts.unpack(losses.unsqueeze(-1)).squeeze(-1)

    def _project_image(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(self.image_proj(states[:, 0]), dim=-1)

    def _project_text(self, summary: Tensor) -> Tensor:
        return nn.functional.normalize(self.text_proj(summary), dim=-1)

    def _image_of_each(self, rows: Tensor, images: Tensor, name: str = "texts") -> Tensor:
        """The image of each row, (batch,): consecutive rows share one."""
        count, images = rows.shape[0], images.shape[0]  # `len` would fix them in an exported graph
        if count % images:
            raise ValueError(f"{count} {name} cannot be shared out evenly among {images} images.")
        return torch.arange(count, device=rows.device) // (count // images)

    def _with_first(self, ids: Tensor, token_id: int) -> Tensor:
        """The same text, of ids or embeddings, for another mode: [CLS] or [ENC] in front."""
        if ids.is_floating_point():
            first = self.get_input_embeddings()(ids.new_full(ids[:, :1, 0].shape, token_id).long())
        else:
            first = torch.full_like(ids[:, :1], token_id)
        return torch.cat([first, ids[:, 1:]], dim=1)

    def _summary(self, states: Tensor, texts: PackedTexts, attention_mask: Tensor | None) -> Tensor:
        """One vector per text, (batch, hidden_size), of the packed states of an encoder.

        The first token's; the mean where no token attends to others (`use_self_attention=False`).
        """
        if self.config.use_self_attention:
            return texts.first(states)
        states = texts.unpack(states)
        if attention_mask is None:
            return states.mean(dim=1)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _match(self, memory: Memory, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        ids = self._with_first(input_ids, self.config.enc_token_id)
        states, texts = self.text_stack(ids, attention_mask, memory)
        return self.itm_head(self._summary(states, texts, attention_mask)).squeeze(-1)

    def _decoder_cache(
        self, cache: Cache | None, use_cache: bool | None, encoder_outputs: ModelOutput
    ) -> EncoderDecoderCache | None:
        """The cache that was given, made to hold M too, or a new one if it is wanted."""
        if cache is None and (not use_cache or self.training):
            return None
        if isinstance(cache, EncoderDecoderCache):
            return cache
        new = MVaEMaCache.empty(self.config, getattr(encoder_outputs, "images", None))
        if cache is not None:
            new.self_attention_cache = cache
        return new

    def _decoder_memory(
        self,
        encoder_outputs: ModelOutput,
        attention_mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Memory:
        """What the decoder attends to.

        The cache keeps keys and values of M for each row, and those of V are read for each image:
        the rows of an image may change places (beams do), never their image.

        Args:
            attention_mask: (batch, prompt length).

        Raises:
            ValueError: the cache was filled from another memory.
        """
        states, images, index = encoder_outputs[0], getattr(encoder_outputs, "images", None), None
        if images is None and isinstance(cache, MVaEMaCache):
            images = cache.images
        image_tokens = 0 if images is None else images[0][0].shape[2]
        if images is not None:
            questions = getattr(encoder_outputs, "questions", None)
            states = states[:, image_tokens:] if questions is None else questions
            index = self._image_of_each(states, images[0][0])
        elif attention_mask is not None:
            image_tokens = states.shape[1] - attention_mask.shape[1]
        if cache is not None and cache.is_updated.get(0):
            cached = cache.cross_attention_cache.layers[0].keys.shape[2]
            if cached < states.shape[1]:
                raise ValueError(
                    f"the cache has keys of {cached} states and encoder_outputs has "
                    f"{states.shape[1]}: pass the encoder_outputs that the cache was filled from."
                )
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (image_tokens, 0), value=1)
        return Memory(images, index, states, attention_mask)

    def _compared(
        self, statement_ids: Tensor, statement_mask: Tensor | None, image_embeds: Tensor | None
    ) -> dict[str, Tensor]:
        """What the output says of statements and, with images, of both."""
        ids = self._with_first(statement_ids, self.config.cls_token_id)
        summary = self._summary(*self.text_stack(ids, statement_mask), statement_mask)
        embeds = self._project_text(summary)
        if image_embeds is None:
            return {"text_embeds": embeds}
        image_embeds = image_embeds.to(embeds.device)
        logits = image_embeds @ embeds.T / self.temperature.to(embeds.device)
        return {"text_embeds": embeds, "logits_per_image": logits}

    # ---- losses ----------------------------------------------------------------------------------

    def _pairs(
        self, statement_ids: Tensor, image_states: Tensor, image_ids: Tensor | None
    ) -> Pairs:
        index = self._image_of_each(statement_ids, image_states, "statements")
        if image_ids is None:
            image_ids = row_numbers(image_states.shape[0], index.device)
        image_ids = image_ids.to(index.device)
        return Pairs.gather(
            statement_ids,
            index,
            image_ids,
            self.config.pad_token_id,
            self.config.multi_positive,
        )

    def _pair_losses(
        self,
        image_states: Tensor,
        images: tuple[KeysAndValues, ...] | None,
        embeds: dict[str, Tensor],
        pairs: Pairs,
    ) -> dict[str, Tensor]:
        """ITC and ITM, those that are on."""
        losses, texts = {}, embeds["text_embeds"]
        image_rows = embeds["image_embeds"].to(texts.device).index_select(0, pairs.image_index)
        both_ways = similarities(image_rows, texts, self.temperature.to(texts.device))
        if self.config.itc_weight:
            losses["itc_loss"] = itc_loss(*both_ways, pairs)
        if self.config.itm_weight:
            losses["itm_loss"] = self._itm_loss(image_states, images, both_ways, pairs)
        return losses

    def _itm_loss(
        self,
        image_states: Tensor,
        images: tuple[KeysAndValues, ...] | None,
        both_ways: tuple[Tensor, Tensor],
        pairs: Pairs,
    ) -> Tensor:
        """ITM over the pairs of the global batch and the negatives that ITC finds similar.

        Args:
            image_states: (images, 1 + patches, hidden_size), of this process.
            images: and their keys and values.
            both_ways: from `similarities`.
        """
        texts, others, exists = itm_negatives(*both_ways, pairs, self.config.pad_token_id)
        # One pass: each pair itself, its image with a wrong text, its text with a wrong image.
        ids = torch.cat([pairs.ids, pairs.all_ids[texts], pairs.ids])
        wrong = others // (len(pairs.ids) // len(image_states))
        if world_size() > 1:  # other processes' images have to be projected here
            other_states = gather(image_states).index_select(0, wrong)
            images = self.text_stack.project_images(torch.cat([image_states, other_states]))
            wrong = len(image_states) + torch.arange(len(wrong), device=ids.device)
        memory = Memory(images, torch.cat([pairs.image_index, pairs.image_index, wrong]))
        logits = self._match(memory, ids, (ids != self.config.pad_token_id).long())
        return itm_loss(logits, exists.to(logits.device))

    def _logits_and_loss(
        self, states: Tensor, texts: PackedTexts, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (batch, length, vocab_size) of packed decoder states, and the LM loss of `labels`.

        In training there are no logits: only words that have a label are computed. Gain on a CPU,
        training with LM alone: 1.5x (`paper`), 1.0x (`small`). A compiled graph needs fixed shapes.
        """
        if not self.config.lm_weight:
            labels = None
        if labels is not None and self.training and not torch.compiler.is_compiling():
            packed_labels = texts.pack(labels)
            labelled = packed_labels != -100
            logits = self.lm_head(states[labelled])
            return None, lm_loss(logits, packed_labels[labelled].to(logits.device))
        logits = self.lm_head(texts.unpack(states))
        return logits, None if labels is None else lm_loss(logits, labels.to(logits.device))

    @can_return_tuple
    @deprecate_kwarg("past_key_values", version="5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        statement_ids: Tensor | None = None,
        statement_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_loss: bool = True,
    ) -> MVaEMaOutput | tuple:
        """
        What is computed follows from what is given: pixels are embedded, statements are embedded
        and, with pixels, compared (ITC, ITM), prompts are answered (logits, and LM with labels).

        Args:
            input_ids: (batch, length) prompts; `batch` is a multiple of `images`, and consecutive
                prompts share an image.
            pixel_values: (images, channels, height, width).
            attention_mask: (batch, length).
            labels: (batch, answer_length), the answers' tokens and [EOS], -100 where ignored. The
                decoder's inputs are made from them ([DEC] in front, one to the right).
            statement_ids: (statements, length), texts that describe the image; `statements` is a
                multiple of `images`, and consecutive statements share an image.
            statement_mask: (statements, length).
            image_ids: (images,), equal for rows that show the same image, on whatever process.
            decoder_input_ids: (batch, answer_length), instead of `labels`; starts with [DEC].
            decoder_attention_mask: (batch, cached length + answer_length), 0 for padding.
            encoder_outputs: the memory, where it has been computed already (as in `generate`).
            cache, use_cache: the decoder's cache.
            inputs_embeds, decoder_inputs_embeds: (batch, length, hidden_size), embeddings of words
                instead of `input_ids` and `decoder_input_ids`.
            image_features: what `image_encoder.features` made of the images, instead of
                `pixel_values`; a frozen vision model has to see each image but once.
            output_attentions, output_hidden_states: whether to return them, of the encoder that
                reads the prompt and of the decoder. Attention weights need eager attention.
            return_loss: whether to compare images and statements (ITC, ITM); the LM loss needs
                `labels` only.

        Returns:
            [`MVaEMaOutput`], or a tuple of its fields when `return_dict=False`.

        Raises:
            ValueError: inputs are missing, are given twice or do not fit.
        """
        prompts = either("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        answers = either(
            "decoder_input_ids", decoder_input_ids, "decoder_inputs_embeds", decoder_inputs_embeds
        )
        if answers is None and labels is not None:
            answers = self.prepare_decoder_input_ids_from_labels(labels)
        pictured = either("pixel_values", pixel_values, "image_features", image_features)
        if answers is None and pictured is None and statement_ids is None:
            raise ValueError(
                "nothing to compute: a prompt (input_ids) is read with pixel_values, to answer it "
                "(labels or decoder_input_ids). generate's guidance_scale has no use here: it "
                "contrasts the prompt with one that has no image."
            )
        image_states = images = None
        parts: dict[str, Tensor | tuple | Cache | None] = {}
        if pictured is not None and encoder_outputs is None:
            image_states = self.image_encoder(pixel_values, features=image_features)
            parts["image_embeds"] = self._project_image(image_states)
            if answers is not None or (statement_ids is not None and return_loss):
                images = self.text_stack.project_images(image_states)
        if statement_ids is not None:
            embeds = parts.get("image_embeds")
            parts |= self._compared(statement_ids, statement_mask, embeds)
            if embeds is not None and return_loss:
                if statement_mask is not None:
                    pad = self.config.pad_token_id
                    statement_ids = statement_ids.masked_fill(statement_mask == 0, pad)
                # Losses are computed where the texts are, if a model is split over several devices.
                statement_ids = statement_ids.to(parts["text_embeds"].device)
                pairs = self._pairs(statement_ids, image_states, image_ids)
                parts |= self._pair_losses(image_states, images, parts, pairs)
        if answers is not None:
            wanted = (output_attentions, output_hidden_states)
            if encoder_outputs is None:
                encoder_outputs = self.encode_prompt(
                    pixel_values,
                    prompts,
                    attention_mask,
                    image_states,
                    images,
                    image_features,
                    *wanted,
                )
            cache = self._decoder_cache(cache, use_cache, encoder_outputs)
            memory = self._decoder_memory(encoder_outputs, attention_mask, cache)
            recorded = Recorded.asked_for(self.config, *wanted)
            states, texts = self.text_stack(
                answers,
                decoder_attention_mask,
                memory,
                causal=True,
                cache=cache,
                needed=None if labels is None else until_last(labels != -100),
                recorded=recorded,
            )
            parts["logits"], parts["lm_loss"] = self._logits_and_loss(states, texts, labels)
            parts |= {"cache": cache, **self._described(encoder_outputs, recorded)}
        return MVaEMaOutput(loss=self._weighted(parts), **parts)

    def _weighted(self, losses: dict[str, Tensor | None]) -> Tensor | None:
        """The weighted sum of the losses that were computed; None if there were none."""
        weighted = [
            getattr(self.config, f"{name}_weight") * losses[f"{name}_loss"]
            for name in ("itc", "itm", "lm")
            if losses.get(f"{name}_loss") is not None
        ]
        return sum(loss.to(weighted[-1].device) for loss in weighted) if weighted else None

    def _described(
        self, encoder_outputs: ModelOutput, recorded: Recorded | None
    ) -> dict[str, Tensor | tuple | None]:
        """What the output says of the question's encoder and of the decoder."""
        recorded = recorded or Recorded()
        return {
            "encoder_last_hidden_state": encoder_outputs[0],
            "encoder_hidden_states": getattr(encoder_outputs, "hidden_states", None),
            "encoder_attentions": getattr(encoder_outputs, "attentions", None),
            "decoder_hidden_states": recorded.hidden_states,
            "decoder_attentions": recorded.attentions,
            "cross_attentions": recorded.cross_attentions,
        }


# `save_pretrained` copies this file and what it imports; config.auto_map names the other classes.
MVaEMaModel.register_for_auto_class("AutoModel")

__all__ = ["MVaEMaModel", "MVaEMaOutput", "MVaEMaPreTrainedModel"]
