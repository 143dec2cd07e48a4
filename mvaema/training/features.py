"""Features of a frozen vision model, computed once for each view of a micrograph and kept on disk.

What is special about it:
- a feature is found by the picture, the view, the vision model's weights and how pixels are made.
  Change one of them and it is another feature: a stale one is never used;
- a file per view, written whole or not at all: processes, workers and later runs share a folder;
- features are rounded to 16 bits before they are used, whether they were just computed or read. So
  a resumed run computes what an uninterrupted one does.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from modeling_mvaema import MVaEMaModel
from mvaema.students.loading import weights_fingerprint
from mvaema.training.views import View


class FeatureStore:
    """A folder of features of one vision model.

    Args:
        folder: shared by runs; features of other models may lie in it.
        student: whose vision model is frozen.
        limit_gb: no more is written when the folder is larger.
    """

    def __init__(self, folder: Path, student: MVaEMaModel, limit_gb: float):
        self.folder, self.limit = Path(folder), limit_gb * 1e9
        made_by = {
            "weights": weights_fingerprint(student.image_encoder.vision_model),
            "model": student.config.vision_config.to_dict(),
            "layers": student.config.vision_feature_layer,
            "pixels": student.processor.image_processor.to_dict(),
        }
        text = json.dumps(made_by, sort_keys=True, default=str)
        self.model = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._bytes = sum(f.stat().st_size for f in self.folder.rglob("*.safetensors"))

    def key(self, row: Mapping, view: View, noise_seed: list[int]) -> str:
        """The name of a view's features.

        Args:
            row: of the micrograph schema, its image encoded or decoded.
            noise_seed: of the noise that is added to the pixels.
        """
        image = row["image"]
        digest = hashlib.sha256(self.model.encode())
        if isinstance(image, dict):
            encoded = image["bytes"]
            digest.update(Path(image["path"]).read_bytes() if encoded is None else encoded)
        else:
            digest.update(repr((image.mode, image.size)).encode() + image.tobytes())
        seed = noise_seed if view.noise else None
        digest.update(repr((view, seed)).encode())
        return digest.hexdigest()[:32]

    def read(self, key: str) -> Tensor | None:
        """Float16 features; None if there are none."""
        try:
            return safetensors.torch.load_file(self._file(key))["features"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, key: str, features: Tensor) -> None:
        """Keep float16 features, unless the folder is full."""
        if self._bytes >= self.limit:
            return
        file = self._file(key)
        file.parent.mkdir(exist_ok=True)
        content = safetensors.torch.save({"features": features.cpu().contiguous()})
        try:
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
                temporary.write(content)
            Path(temporary.name).replace(file)
        except OSError:  # a full disk: the run can do without
            self.limit = 0
            Path(temporary.name).unlink(missing_ok=True)
            return
        self._bytes += len(content)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class FrozenVision:
    """Completes batches with the features of views that the store does not have yet.

    Args:
        student: unwrapped, on the device that it is trained on.
    """

    def __init__(self, student: MVaEMaModel, store: FeatureStore):
        self.student, self.store = student, store

    @torch.no_grad()
    def complete(
        self, inputs: dict[str, Tensor], keys: Sequence[str], known: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """The inputs of a batch, `image_features` (float16) in the place of `pixel_values`.

        Args:
            inputs: with `pixel_values` of the images whose features are not known.
            keys: of all images, in order.
            known: their features, or None.
        """
        features = list(known)
        missing = [i for i, found in enumerate(known) if found is None]
        if missing:
            device = self.student.image_encoder.cls_token.device
            pixels = inputs["pixel_values"].to(device)
            # On a CPU one by one: its cache does not hold the states of more, and what is computed
            # does not depend on which of a batch's features are known already.
            parts = pixels.split(1 if device.type == "cpu" else len(pixels))
            computed = torch.cat([self.student.image_encoder.features(part) for part in parts])
            computed = computed.half().cpu()
            for place, found in zip(missing, computed, strict=True):
                features[place] = found
                self.store.write(keys[place], found)
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        return {**rest, "image_features": torch.stack(features)}
