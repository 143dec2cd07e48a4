"""Training steps of both models on the same batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.speed import peers
from benchmarks.speed.workload import Workload, batch
from modeling_mvaema import MVaEMaModel

WHO = ("ours", "BLIP", "BLIP, parts")


def loss_of(who: str, workload: Workload) -> tuple[nn.Module, Callable[[dict], Tensor]]:
    """A model in training mode, and its loss on a batch.

    Args:
        who: "ours"; "BLIP", by its public call (LM only); or "BLIP, parts", each image encoded
            once.
    """
    config = workload.config()
    torch.manual_seed(0)
    if who == "ours":
        model = MVaEMaModel(config)

        def loss(inputs):
            return model(**inputs).loss

    elif who == "BLIP, parts" and workload.losses == "all":
        model = loss = peers.AssembledBlip(config)
    elif who == "BLIP, parts":
        model = peers.answering(config)

        def loss(inputs):
            states = model.vision_model(inputs["pixel_values"]).last_hidden_state
            return peers.lm_loss(model, states, inputs, config)

    elif who == "BLIP" and workload.losses == "lm":
        model = peers.answering(config)

        def loss(inputs):
            return peers.vqa_loss(model, inputs, config)

    else:
        raise ValueError(f"{who!r} does not train with losses={workload.losses!r}.")
    model.to(workload.device).train()
    if workload.compile:
        loss = torch.compile(loss)
    return model, loss


def training_step(who: str, workload: Workload) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model, and a step of it as the recipe has it: Adam, gradients clipped, one fixed batch."""
    model, loss = loss_of(who, workload)
    inputs, dtype = batch(workload), getattr(torch, workload.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> Tensor:
        with torch.autocast(workload.device, dtype, enabled=dtype != torch.float32):
            value = loss(inputs)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return model, step
