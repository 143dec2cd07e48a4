"""Training steps of both models on the same batch."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.speed import peers
from benchmarks.speed.workload import Workload, batch
from modeling_mvaema import MVaEMaModel


def model_and_loss(
    who: str, workload: Workload
) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """A model in training mode, and its loss on a batch.

    Args:
        who: "ours"; "BLIP", by its public calls; or "BLIP, parts", each image encoded once.
    """
    config = workload.config()
    torch.manual_seed(0)
    if who == "ours":
        model = MVaEMaModel(config)
    elif who in ("BLIP", "BLIP, parts") and workload.losses == "all":
        model = peers.AssembledBlip(config, by_parts=who == "BLIP, parts")
    elif who in ("BLIP", "BLIP, parts") and workload.losses == "lm":
        model = peers.answering(config)
    else:
        raise ValueError(f"{who!r} does not train with losses={workload.losses!r}.")
    model.to(workload.device).train()
    called = DistributedDataParallel(model) if dist.is_initialized() else model

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        if who == "ours":
            return called(**inputs).loss
        if workload.losses == "all":
            return called(inputs)
        if who == "BLIP":
            return peers.vqa_loss(called, inputs, config)
        states = model.vision_model(inputs["pixel_values"]).last_hidden_state
        return peers.lm_loss(model, states, inputs, config)

    return model, torch.compile(loss) if workload.compile else loss


def training_step(
    who: str, workload: Workload, seed: int = 0
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A model, and a step of it as the recipe has it: Adam, gradients clipped.

    The step takes a batch; without one, the same `batch(workload, seed)` each time.
    """
    model, loss = model_and_loss(who, workload)
    fixed, dtype = batch(workload, seed), getattr(torch, workload.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step(inputs: dict[str, Tensor] | None = None) -> Tensor:
        with torch.autocast(workload.device, dtype, enabled=dtype != torch.float32):
            value = loss(fixed if inputs is None else inputs)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return model, step


def encoding(who: str, workload: Workload, part: str) -> tuple[nn.Module, Callable[[], None]]:
    """A model, and a call that encodes the images or the prompts of a batch and goes back.

    Args:
        who: "ours", or ViT and BERT of transformers in our shapes.
        part: "image" or "text".
    """
    config, inputs = workload.config(), batch(workload)
    dtype = getattr(torch, workload.dtype)
    torch.manual_seed(0)
    if who == "ours":
        model = MVaEMaModel(config)
    else:
        model = peers.image_part(config) if part == "image" else peers.text_part(config)
    model.to(workload.device).train()

    def encoded() -> Tensor:
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if who == "ours":
            if part == "image":
                return model.get_image_features(inputs["pixel_values"]).pooler_output
            return model.get_text_features(**texts).pooler_output
        if part == "image":
            return model(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 0]
        return model(**texts).last_hidden_state[:, 0]

    encoded = torch.compile(encoded) if workload.compile else encoded

    def call() -> None:
        with torch.autocast(workload.device, dtype, enabled=dtype != torch.float32):
            value = encoded().float().square().sum()
        value.backward()
        model.zero_grad()

    return model, call
