"""The part of `auxmae eval` that needs no labels: what the model makes of hidden patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.evaluation.linear_floor import LinearFloor
    from auxmae.evaluation.reconstruction import ReconstructionResult
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import SettingsTree

# Training images or windows that the linear floor is fitted on, at most.
_FLOOR_IMAGES = 200
# Held-out images that are reconstructed at each of eval.mask_ratios, at most.
_RATIO_IMAGES = 200
# Held-out images that are reconstructed from one source at a time, at most.
_SOURCE_IMAGES = 100


def measure(
    model: AuxMAE, data: Data, settings: SettingsTree, device: Any, out: Console
) -> tuple[ReconstructionResult, dict[str, object], LinearFloor]:
    """Reconstructs, prints the tables → (the result at the run's own mask ratio, "reconstruction" in the document, the floor).

    The linear floor is fitted once, on training images at the run's own mask ratio, and used at every other mask too, as the
    model is.
    """
    from auxmae.cli.eval_tables import ratio_table, reconstruction_table, sources_table
    from auxmae.evaluation.linear_floor import LINEAR, LinearFloor
    from auxmae.evaluation.reconstruction import evaluate_reconstruction
    from auxmae.evaluation.reconstruction_sources import evaluate_sources

    assert data.test is not None
    seed, most = settings.eval.mask_seed, settings.eval.max_images
    with out.status("Fitting the linear floor") as status:
        # Masks of the training images other than those of the held-out ones.
        linear = LinearFloor.fit(model, data.train.limited(_FLOOR_IMAGES), seed=seed + 1, device=device)
        common: dict[str, Any] = {"seed": seed, "device": device, "more_floors": {LINEAR: linear}}
        status.update("Reconstructing held-out images")
        result = evaluate_reconstruction(
            model,
            data.test.limited(most),
            **common,
            progress=lambda images: status.update(f"Reconstructing held-out images: {images}"),
        )
        ratios = {}
        for ratio in settings.eval.mask_ratios:
            status.update(f"Reconstructing with {ratio:.0%} hidden")
            some = data.test.limited(min(most or _RATIO_IMAGES, _RATIO_IMAGES))
            ratios[f"{ratio:g}"] = evaluate_reconstruction(model, some, **common, ratio=ratio)
        status.update("Reconstructing from one source at a time")
        some = data.test.limited(min(most or _SOURCE_IMAGES, _SOURCE_IMAGES))
        sources = evaluate_sources(model, some, **common)
    out.print(reconstruction_table(result))
    if ratios:
        out.print(ratio_table(ratios))
    if sources is not None:
        out.print(sources_table(sources))
    document = {
        **result.to_dict(),
        "ratios": {ratio: each.to_dict() for ratio, each in ratios.items()},
        "sources": None if sources is None else sources.to_dict(),
    }
    return result, document, linear
