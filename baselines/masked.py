"""Encoders that first fill in hidden patches of micrographs: MAE and SimMIM.

What is special about it: masking and MAE's decoder are lightly's, on timm's ViT-tiny. Those of
vit-pytorch do not work.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.probed import PATCH, Probed, vit_tiny
from baselines.rows import Shapes
from baselines.views import draw, framing


class Masked(Probed):
    """Patches of a micrograph are hidden from a ViT, and are to be filled in.

    Args:
        shapes: classes and image size.
        ratio: share of the patches that are hidden.
    """

    def __init__(self, shapes: Shapes, ratio: float):
        from lightly.models.modules import MaskedVisionTransformerTIMM

        vit = vit_tiny(shapes.image_size)
        super().__init__(MaskedVisionTransformerTIMM(vit), vit.num_features, shapes.classes)
        self.transform = framing(shapes.image_size, 0.2)
        self.ratio = ratio

    def compare(self, images: Tensor, patches: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        """The loss of what is filled in.

        Args:
            images: (batch, 3, height, width).
            patches: those that are hidden, (batch, places, values).
            seen, hidden: places in the sequence of tokens, the class token at 0.
        """
        raise NotImplementedError

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        from lightly.models.utils import get_at_index, patchify, random_token_mask

        images = draw(self.transform, pixel_values)
        size = (len(images), self.encoder.sequence_length)
        seen, hidden = random_token_mask(size, self.ratio, device=images.device)
        patches = get_at_index(patchify(images, PATCH), hidden - 1)
        return self.compare(images, patches, seen, hidden)


class SimMIM(Masked):
    """A mask token stands for each hidden patch, and a linear layer fills it in."""

    def __init__(self, shapes: Shapes):
        super().__init__(shapes, ratio=0.6)
        self.decoder = nn.Linear(self.encoder.vit.num_features, 3 * PATCH**2)

    def compare(self, images: Tensor, patches: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        from lightly.models.utils import get_at_index

        tokens = self.encoder.encode(images, idx_mask=hidden)
        return F.l1_loss(self.decoder(get_at_index(tokens, hidden)), patches)


class MAE(Masked):
    """The encoder sees a quarter of the patches; two more blocks fill in standardised ones."""

    def __init__(self, shapes: Shapes):
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM

        super().__init__(shapes, ratio=0.75)
        self.encoder.mask_token.requires_grad_(False)  # hidden patches are left out, not replaced
        width, patches = self.encoder.vit.num_features, self.encoder.vit.patch_embed.num_patches
        self.embed = nn.Linear(width, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(patches, width, depth=2, num_heads=3)
        self.predict = nn.Linear(width, 3 * PATCH**2)

    def compare(self, images: Tensor, patches: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        from lightly.models.utils import get_at_index, normalize_mean_var, set_at_index

        tokens = self.embed(self.encoder.encode(images, idx_keep=seen))
        empty = tokens.new_zeros(len(tokens), self.decoder.sequence_length, tokens.shape[-1])
        decoded = self.decoder(set_at_index(empty, seen, tokens), idx_mask=hidden)
        filled = self.predict(get_at_index(decoded, hidden))
        return F.mse_loss(filled, normalize_mean_var(patches))
