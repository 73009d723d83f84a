"""The part of `auxmae eval` that needs no labels: what the model makes of hidden patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.data.loading import Loader
    from auxmae.evaluation.linear_floor import LinearFloor
    from auxmae.evaluation.reconstruction import ReconstructionResult
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import SettingsTree

# Training images or windows that the linear floor is fitted on, at most.
_FLOOR_IMAGES = 200
# Held-out images or windows that are reconstructed at each of eval.mask_ratios, at most.
_RATIO_IMAGES = 200
# Held-out images or windows that are reconstructed from one source at a time, at most.
_SOURCE_IMAGES = 100


def measure(
    model: AuxMAE, data: Data, settings: SettingsTree, device: Any, out: Console
) -> tuple[ReconstructionResult, dict[str, object], LinearFloor]:
    """Reconstructs, prints the tables → (the result at the run's own mask ratio, "reconstruction" in the document, the floor).

    The linear floor is fitted once, on training images at the run's own mask ratio, and used at every other mask too, as the
    model is.
    """
    from auxmae.cli.console import print_table
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
        held = data.test.limited(most)
        result = evaluate_reconstruction(
            model,
            held,
            **common,
            progress=lambda images: status.update(f"Reconstructing held-out images: {images}"),
        )
        ratios = {}
        of_ratios = data.test.limited(min(most or _RATIO_IMAGES, _RATIO_IMAGES))
        for ratio in settings.eval.mask_ratios:
            status.update(f"Reconstructing with {ratio:.0%} hidden")
            ratios[f"{ratio:g}"] = evaluate_reconstruction(model, of_ratios, **common, ratio=ratio)
        status.update("Reconstructing from one source at a time")
        of_sources = data.test.limited(min(most or _SOURCE_IMAGES, _SOURCE_IMAGES))
        sources = evaluate_sources(model, of_sources, **common)
    print_table(out, reconstruction_table(result, _count(held)))
    if ratios:
        print_table(out, ratio_table(ratios, _count(of_ratios)))
    if sources is not None:
        print_table(out, sources_table(sources, _count(of_sources)))
    document = {
        **result.to_dict(),
        "ratios": {ratio: each.to_dict() for ratio, each in ratios.items()},
        "sources": None if sources is None else sources.to_dict(),
    }
    return result, document, linear


def _count(held: Loader) -> str:
    """How many of what is measured, for people: windows are not taken for images."""
    images, windows = held.count_images(), held.samples
    plural = "" if images == 1 else "s"
    if held.dataset.collection.layout == "scenes":
        return f"{windows} held-out window{'' if windows == 1 else 's'} of {images} scene{plural}"
    counted = f"{images} held-out image{plural}"
    return f"{windows} windows of {counted}" if held.dataset.in_parts else counted
