"""The scikit-learn transformer on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import auxmae


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_on_a_gpu_computes_there_and_stays():
    pytest.importorskip("sklearn", reason="the transformer is scikit-learn's, which is not installed")
    torch.manual_seed(0)
    images = np.random.default_rng(0).uniform(size=(9, 3, 8, 8))
    model = auxmae.AuxMAE(3, image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    expected = auxmae.FeatureExtractor(model).fit_transform(images)
    model.to("cuda")
    for device in (None, "cpu", "cuda"):
        extractor = auxmae.FeatureExtractor(model, device=device)
        np.testing.assert_allclose(extractor.fit_transform(images), expected, rtol=1e-3, atol=1e-4)
        assert next(extractor.model_.parameters()).device.type == (device or "cuda")
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
