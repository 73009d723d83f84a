"""AuxMAE: masked autoencoder pre-training for images with any number of channels.

import auxmae
result = auxmae.train({"data": {"source": "my/images"}})
model = auxmae.AuxMAE.from_pretrained(result.run)
features = model.forward_features(x)          # (B, num_features)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auxmae.errors import AuxMAEError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from auxmae.api import train
    from auxmae.extractor import FeatureExtractor
    from auxmae.model.mae import AuxMAE
    from auxmae.settings import load_settings

__all__ = ["AuxMAE", "AuxMAEError", "FeatureExtractor", "__version__", "load_settings", "train"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: PyTorch takes seconds to import, and `auxmae --help` needs none of it.
    if name == "AuxMAE":
        from auxmae.model.mae import AuxMAE

        return AuxMAE
    if name == "FeatureExtractor":
        from auxmae.extractor import FeatureExtractor

        return FeatureExtractor
    if name == "train":
        from auxmae.api import train

        return train
    if name == "load_settings":
        from auxmae.settings import load_settings

        return load_settings
    raise AttributeError(f"module 'auxmae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
