"""Named sets of model and training values, which `model.preset` chooses from."""

from __future__ import annotations

# What a preset sets: the values below stand between the file and the defaults in precedence.
PRESETS: dict[str, dict[str, dict[str, object]]] = {
    # Quick start: ends well within three minutes on two CPU cores.
    "tiny": {
        "model": {
            "image_size": 48,
            "patch_size": 8,
            "width": 96,
            "depth": 3,
            "heads": 4,
            "hidden": 192,
            "decoder_depth": 2,
        },
        "train": {
            "batch_size": 4,
            "epochs": 40,
            "optimizer": "muon",
            "learning_rate": 6e-3,
            "max_minutes": 1.5,
            "validate_every": 2,
        },
    },
    # One hyperspectral scene, labelled pixel by pixel: single-pixel patches keep each pixel's spectrum apart from its
    # neighbours', and eight groups keep hundreds of bands affordable.
    "scene": {
        "model": {
            "image_size": 10,
            "patch_size": 1,
            "channel_groups": "auto",
            "width": 64,
            "depth": 3,
            "heads": 4,
            "decoder_depth": 1,
            "cls_tokens": False,
        },
        # What a pixel's own spectrum says in a straight line, the encoder bends: its embedded tokens are kept beside.
        "eval": {"pool": "moments+embedding"},
        # With half of the pixels visible, training looks more like use, where all are.
        "masking": {"ratio": 0.5},
        "train": {
            "batch_size": 16,
            "epochs": 400,
            "optimizer": "muon",
            "learning_rate": 1e-2,
            "max_minutes": 15.0,
            "validate_every": 10,
        },
    },
    # The sizes of AuxiliaryMAE's published design: equal encoder and decoder, GELU after the embedding, sigmoid output, dropout.
    "reference": {
        "model": {
            "patch_size": 16,
            "width": 256,
            "depth": 6,
            "heads": 8,
            "hidden": 512,
            "decoder_width": 256,
            "decoder_depth": 6,
            "decoder_heads": 8,
            "decoder_hidden": 512,
            "dropout": 0.1,
            "embedding_activation": "gelu",
            "output_activation": "sigmoid",
        },
        "train": {"batch_size": 128, "learning_rate": 1e-3},
    },
    "small": {
        "model": {"patch_size": 8, "width": 256, "depth": 6, "heads": 8, "hidden": 512, "decoder_depth": 2},
        "train": {"batch_size": 128, "epochs": 200},
    },
    "base": {
        "model": {"patch_size": 8, "width": 512, "depth": 8, "heads": 8, "hidden": 1024, "decoder_depth": 2},
        "train": {"batch_size": 256, "epochs": 300, "learning_rate": 6e-4},
    },
    "large": {
        "model": {"patch_size": 8, "width": 768, "depth": 12, "heads": 12, "hidden": 1536, "decoder_depth": 4},
        "train": {"batch_size": 256, "epochs": 400, "learning_rate": 4e-4},
    },
}
