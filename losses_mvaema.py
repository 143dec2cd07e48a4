"""The three losses of MVaEMa as pure functions: contrastive (ITC), matching (ITM) and LM.

What is special about it:
- pairs are compared over the batches of all processes, with gradients, and losses are means over
  the global batch: two processes compute what one would;
- pairs of equal text or equal image are positives (`multi_positive`). With all texts distinct, ITC
  is the paper's formula;
- losses depend on nothing but the batch and the weights. The noise that draws ITM's negatives is a
  hash of the pair, so a resumed run repeats itself and validation losses can be compared.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """all_gather with gradients; torch's own (`distributed.nn.functional`) is deprecated."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # reduce_scatter would do, but gloo lacks it: sum over processes, keep this one's part.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[dist.get_rank()]


def gather(tensor: Tensor) -> Tensor:
    """Rows of all processes, rank by rank: (batch, ...) -> (world * batch, ...), with gradients.

    The backward pass sums what all processes send to a row. Averaging gradients over processes, as
    DDP does, then gives the gradient of the mean loss over the global batch.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def row_numbers(count: int, device: torch.device) -> Tensor:
    """Numbers of this process' `count` rows in the global batch, (count,)."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return torch.arange(count, device=device) + rank * count


def global_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true, over the rows of all processes.

    Each process returns its share times the number of processes: the average over processes is
    the global mean, and so is its gradient.
    """
    total, count = (values * mask).sum(), mask.sum()
    if world_size() > 1:
        dist.all_reduce(count)
        total = total * world_size()
    return total / count.clamp(min=1)


# ---- ITC and ITM: all pairs of an image and a statement ------------------------------------------


@dataclass
class Pairs:
    """Which pairs of an image and a text of the global batch belong together.

    A row is a statement and its image. Rows are this process' own, columns those of all.

    Args:
        ids, all_ids: (rows, length) and (columns, length), token ids of the statements.
        image_index: (rows,), the place of each own statement's image among this process' images.
        images, all_images: (rows,) and (columns,), equal numbers for equal images.
        text_of_image: (rows, columns) bool, whether text j describes image i. It does when it
            equals any text of that image.
        image_of_text: (rows, columns) bool, whether image j is described by text i.
    """

    ids: Tensor
    all_ids: Tensor
    image_index: Tensor
    images: Tensor
    all_images: Tensor
    text_of_image: Tensor
    image_of_text: Tensor

    @classmethod
    def gather(
        cls,
        ids: Tensor,
        image_index: Tensor,
        image_ids: Tensor,
        pad_token_id: int,
        multi_positive: bool = True,
    ) -> "Pairs":
        """The pairs of this process' statements and images with those of all processes.

        Args:
            ids: (rows, length), padding as `pad_token_id`: equal texts must have equal ids.
            image_index: (rows,), which of the images each statement describes.
            image_ids: (images,), equal for equal images on whatever process.
            multi_positive: when false, a statement and its image are a pair and nothing else is.
        """
        if world_size() > 1:  # pad to the longest
            longest = torch.tensor(ids.shape[1], device=ids.device)
            dist.all_reduce(longest, op=dist.ReduceOp.MAX)
            ids = nn.functional.pad(ids, (0, int(longest) - ids.shape[1]), value=pad_token_id)
        images = image_ids[image_index]
        all_ids, all_images = gather(ids), gather(images)
        if not multi_positive:
            own = row_numbers(len(ids), ids.device)
            pairs = own.unsqueeze(1) == gather(own).unsqueeze(0)
            return cls(ids, all_ids, image_index, images, all_images, pairs, pairs)
        same_image = (images.unsqueeze(1) == all_images.unsqueeze(0)).float()
        same_text = (ids.unsqueeze(1) == all_ids.unsqueeze(0)).all(dim=2).float()
        text_of_image = same_image @ gather(same_text) > 0
        image_of_text = same_text @ gather(same_image) > 0
        return cls(ids, all_ids, image_index, images, all_images, text_of_image, image_of_text)


def similarities(
    image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """sim / tau of own images with all texts, and of own texts with all images: (rows, columns).

    Args:
        image_embeds, text_embeds: (rows, projection_dim), normalised, row by row a pair.
    """
    return (
        image_embeds @ gather(text_embeds).T / temperature,
        text_embeds @ gather(image_embeds).T / temperature,
    )


def contrastive_loss(similarity: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of each row of `similarity` against its positives, (rows,).

    The target is uniform over the positives of a row. With one positive per row this is the
    InfoNCE term of the paper, -log softmax(sim_i / tau)_i.

    Args:
        similarity: (rows, columns), already divided by the temperature.
        positives: (rows, columns), bool, at least one true per row.
    """
    target = positives / positives.sum(dim=1, keepdim=True)
    return -(target * similarity.log_softmax(dim=1)).sum(dim=1)


def itc_loss(image_to_text: Tensor, text_to_image: Tensor, pairs: Pairs) -> Tensor:
    """Half the sum of both directions' contrastive losses, a mean over the global batch."""
    losses = torch.stack(
        [
            contrastive_loss(image_to_text.float(), pairs.text_of_image),
            contrastive_loss(text_to_image.float(), pairs.image_of_text),
        ]
    )
    return global_mean(losses, torch.ones_like(losses))


def pair_noise(rows: Tensor, columns: Tensor) -> Tensor:
    """Gumbel noise (rows, columns): a hash of two int64 keys, (rows,) and (columns,).

    A pair draws the same noise on any process and in any run that repeats this one, and no random
    state has to be kept. splitmix64's finalizer (Steele et al. 2014) mixes the keys.
    """
    mixed = rows.unsqueeze(1) * 0x1E3779B97F4A7C15 + columns.unsqueeze(0) * 0x2545F4914F6CDD1D
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    uniform = ((mixed & 0xFFFFFF).float() + 0.5) / 0x1000000
    return -(-uniform.log()).log()


def text_keys(ids: Tensor, pad_token_id: int) -> Tensor:
    """A number per text, int64 (rows,): equal for equal texts, however they are padded."""
    weights = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    words = ids.masked_fill(ids == pad_token_id, 0)
    return (words * weights * 0x2545F4914F6CDD1D).sum(dim=1)


def mine_negatives(similarity: Tensor, positives: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One column for each row, drawn with probability softmax(similarity) among the negatives.

    As in ALBEF and BLIP. It is drawn because the most similar text too often describes the image
    as well.

    Args:
        similarity: (rows, columns), divided by the temperature.
        positives: (rows, columns), bool.
        noise: (rows, columns), Gumbel: the largest sum with it is a draw from the softmax.

    Returns:
        index of the negative, (rows,), and whether the row has one at all, (rows,) bool.
    """
    candidates = (similarity.detach() + noise).masked_fill(positives, -torch.inf)
    return candidates.argmax(dim=1), ~positives.all(dim=1)


def itm_negatives(
    image_to_text: Tensor, text_to_image: Tensor, pairs: Pairs, pad_token_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A wrong text for each image and a wrong image for each text, mined by ITC similarity.

    Returns:
        columns of the wrong texts and of the wrong images, (rows,) each, and which of the
        3 * rows pairs of `itm_loss` exist, bool.
    """
    keys, all_keys = (text_keys(ids, pad_token_id) for ids in (pairs.ids, pairs.all_ids))
    text_noise = pair_noise(pairs.images, all_keys)
    image_noise = pair_noise(keys, pairs.all_images)
    texts, has_text = mine_negatives(image_to_text, pairs.text_of_image, text_noise)
    images, has_image = mine_negatives(text_to_image, pairs.image_of_text, image_noise)
    return texts, images, torch.cat([torch.ones_like(has_text), has_text, has_image])


def itm_loss(logits: Tensor, exists: Tensor) -> Tensor:
    """Binary cross-entropy over the pairs that exist, a mean over the global batch.

    Args:
        logits: (3 * rows,), of the matching pairs, then of images with a wrong text, then of texts
            with a wrong image.
        exists: (3 * rows,), bool; a batch of one has no negatives.
    """
    target = torch.zeros_like(logits, dtype=torch.float32)
    target[: len(logits) // 3] = 1
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), target, reduction="none"
    )
    return global_mean(losses, exists)


# ---- LM ------------------------------------------------------------------------------------------


def shift_right(labels: Tensor, start_token_id: int, pad_token_id: int) -> Tensor:
    """The decoder's inputs for `labels` (batch, length): [DEC], and all but the last of them."""
    start = torch.full_like(labels[:, :1], start_token_id)
    return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, pad_token_id)], 1)


def lm_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label, in nats; 0 where the label is -100.

    The decoder's inputs were shifted (`shift_right`), so logits and labels are aligned.

    Args:
        logits: (..., vocab_size).
        labels: (...).

    Returns:
        losses, as many as labels, (...).
    """
    losses = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view_as(labels)


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of `lm_losses` over the labelled tokens of the global batch."""
    return global_mean(lm_losses(logits, labels), labels != -100)
