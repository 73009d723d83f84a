"""The model suite's check at the size, batch and type that are timed: ours and its variants beside the plain published design.

`model_gate` finds small faults on a small model in fp64.  What goes wrong only with many images or channels, or only in compiled
or recomputed blocks, shows here, within what the type explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auxmae.benchmark.gate import Results, judge
from auxmae.benchmark.measure import WrongResultError, attempt
from auxmae.benchmark.model_gate import counterparts, named, share_weights
from auxmae.benchmark.peers import PlainAuxiliaryMAE
from auxmae.model.mae import AuxMAE
from auxmae.training.optimization import autocast

# Units of rounding of fp32 that count as one: there the plain design in fp32 stands for the truth, and is no nearer to it.
FP32_UNITS = 32.0


@dataclass
class _Inputs:
    """image (B, C, h, w) of zeros and ones, see `check_model`; noise (B, C, N) and the visible places keep (B, C, K).

    All channels show the same places, as the plain design needs, but for the last image, which is compared with nothing: it makes
    ours look tokens up by place, as it does under the independent masks that are timed.
    """

    image: Tensor
    noise: Tensor
    keep: Tensor


def check_timed(
    models: Mapping[str, AuxMAE],
    plain: PlainAuxiliaryMAE,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    learns: bool,
) -> dict[str, tuple[str, str]]:
    """Compares predictions, loss and, where a step is timed (`learns`), gradients; of a batch of one image: of two.

    Gradients are not compared where the memory is too little for the plain design's or a provider's.

    Args:
        models: provider → model, on the device; plain: the same size; all get other weights, the same ones.
        batch: images that are timed; dtype: of the autocast regions, fp32: none.

    Returns:
        Provider → ("ok", ""), or a status and its reason.
    """
    first, *others = models.values()
    share_weights(first, plain)
    for other in others:
        other.load_state_dict(first.state_dict())
    inputs = _inputs(first, max(batch, 2), device)
    # As it is and in the timed type: what the type explains.
    types = (torch.float32, dtype)
    predictions: list[Results] = []
    learned: list[Results] = []
    status, reason = attempt(lambda: predictions.extend(_plain_predictions(plain, inputs, each) for each in types), device)
    if status != "ok":
        return dict.fromkeys(models, (status, f"the plain published design, at this size: {reason}"))
    if learns:
        attempt(lambda: learned.extend(_plain_gradients(plain, inputs, each) for each in types), device)
    epsilon = torch.finfo(dtype).eps * (FP32_UNITS if dtype is torch.float32 else 1.0)

    def compare(found: Results, expected: Results, eager: Results) -> None:
        verdict = judge(found, eager, expected, epsilon)
        if not verdict.correct:
            raise WrongResultError(f"at this size, with the weights of the plain published design, {verdict.reason}")

    def forward(model: AuxMAE) -> None:
        found, own = _predictions(model, inputs, dtype)
        compare(found, *predictions)
        compare(own["given"], own["expected"], own["expected"])

    def check(model: AuxMAE) -> tuple[str, str]:
        outcome = attempt(lambda: forward(model), device)
        if outcome[0] != "ok" or len(learned) < len(types):
            return outcome
        outcome = attempt(lambda: compare(_gradients(model, inputs, dtype), *learned), device)
        # A step that does not fit says so itself, and costs the forward pass nothing.
        return ("ok", "") if outcome[0] == "out of memory" else outcome

    return {name: check(model) for name, model in models.items()}


def _inputs(model: AuxMAE, batch: int, device: torch.device) -> _Inputs:
    channels, size = len(model.groups), model.config["image_size"]
    positions = (size // model.patch_size) ** 2
    noise = torch.rand(batch, 1, positions).repeat(1, channels, 1)
    noise[-1] = torch.stack([row.roll(shift) for shift, row in enumerate(noise[-1])])
    keep = noise.argsort(2)[..., : round(positions * (1 - model.config["mask_ratio"]))]
    image = torch.rand(batch, channels, size, size).round()
    return _Inputs(image.to(device), noise.to(device), keep.to(device))


def _in(dtype: torch.dtype, device: torch.device, work: Callable[[], Tensor]) -> Tensor:
    with autocast(None if dtype is torch.float32 else dtype, device):
        return work()


@torch.no_grad()
def _plain_predictions(model: PlainAuxiliaryMAE, inputs: _Inputs, dtype: torch.dtype) -> Results:
    image, noise, keep = inputs.image[:-1], inputs.noise[:-1], inputs.keep
    found = _in(dtype, image.device, lambda: model.predict(image, noise)[0])
    return {"prediction": _hidden(found, noise, keep.shape[2])}


def _hidden(patches: Tensor, noise: Tensor, kept: int) -> Tensor:
    """(B, C, N, P) → the hidden ones in the order of their places, as AuxMAE predicts them, flat."""
    places = noise.argsort(2)[..., kept:].sort(2).values
    return patches.gather(2, places[..., None].expand(-1, -1, -1, patches.shape[3])).flatten().cpu()


@torch.no_grad()
def _predictions(model: AuxMAE, inputs: _Inputs, dtype: torch.dtype) -> tuple[Results, dict[str, Results]]:
    """Predictions of all images but the last; and the loss of all, beside what follows from all predictions."""
    image, p = inputs.image, model.patch_size
    with autocast(None if dtype is torch.float32 else dtype, image.device):
        found = model(image, inputs.keep)
    sides = (image.shape[2] // p, p, image.shape[3] // p, p)
    patches = image.view(*image.shape[:2], *sides).permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
    target = _hidden(patches, inputs.noise, inputs.keep.shape[2])
    loss = (found.prediction.flatten().cpu().double() - target.double()).abs().mean()
    own = {"given": {"loss": found.loss.flatten().cpu()}, "expected": {"loss": loss.flatten()}}
    return {"prediction": found.prediction[:-1].flatten().cpu()}, own


def _plain_gradients(model: PlainAuxiliaryMAE, inputs: _Inputs, dtype: torch.dtype) -> Results:
    loss = _in(dtype, inputs.image.device, lambda: model(inputs.image[:-1], inputs.noise[:-1]))
    return named("", loss, loss.detach(), counterparts(model))


def _gradients(model: AuxMAE, inputs: _Inputs, dtype: torch.dtype) -> Results:
    # Without a valid pixel the last image counts for nothing.
    image = inputs.image.clone()
    image[-1] = torch.nan
    loss = _in(dtype, image.device, lambda: model(image, inputs.keep).loss)
    return named("", loss, loss.detach(), dict(model.named_parameters()))
