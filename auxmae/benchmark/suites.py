"""The model suite: training step and forward pass beside other ways to learn from the same images.

Ours and its variants get figures only where they compute what the plain published design does, see `model_gate` and `timed_gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from auxmae.benchmark.cases import MASK_RATIO, ModelCase
from auxmae.benchmark.device import occupation
from auxmae.benchmark.environment import architecture
from auxmae.benchmark.gate import Verdict
from auxmae.benchmark.graphed import replayed
from auxmae.benchmark.joint import JointMAE, vit_mae
from auxmae.benchmark.measure import FIRST_VISIT, Visit, attempt, interleaved
from auxmae.benchmark.model_gate import check_model
from auxmae.benchmark.peers import PlainAuxiliaryMAE
from auxmae.benchmark.roofline import achieved, flops
from auxmae.benchmark.timed_gate import check_timed
from auxmae.model.mae import AuxMAE
from auxmae.training.optimization import autocast

OURS = "auxmae"
# The published design in plain PyTorch (`peers.PlainAuxiliaryMAE`).
PLAIN = "plain design"
JOINT = "joint attention"
# All channels in one token: less work for less.
FUSED = "ViTMAE, fused"
# What a case is measured with if nothing else is said.
PEERS = (PLAIN, JOINT, FUSED)
COMPILED, RECOMPUTED, GRAPHED = " (compiled)", " (recompute)", " (CUDA graph)"


REFERENCE = ModelCase("reference", 16)
QUICK = ModelCase("quick", 8, width=64, hidden=128, heads=4, depth=2, decoder_depth=2)
# What a GPU is measured with: the reference, then more channels and smaller patches, the most first, then wider models.
GPU_CASES = (
    replace(REFERENCE, batch=128),
    ModelCase("c200-128px-p8", 2, 200, 128, 8),
    ModelCase("c13-128px-p8", 32, 13, 128, 8),
    ModelCase("c64-128px-p8", 8, 64, 128, 8),
    ModelCase("d384", 128, width=384, hidden=768, heads=6),
    ModelCase("d768", 64, width=768, hidden=1536, heads=12),
)


def cases_for(device: torch.device, *, quick: bool) -> tuple[ModelCase, ...]:
    """The sizes that suit the machine."""
    return (QUICK,) if quick else GPU_CASES if device.type == "cuda" else (REFERENCE,)


def our_model(case: ModelCase) -> AuxMAE:
    """AuxMAE at the size of a case, as published: encoder and decoder alike, sigmoid output."""
    return AuxMAE(
        case.channels,
        image_size=case.image_size,
        patch_size=case.patch_size,
        width=case.width,
        depth=case.depth,
        heads=case.heads,
        hidden=case.hidden,
        decoder_width=case.width,
        decoder_depth=case.decoder_depth,
        decoder_hidden=case.hidden,
        output_activation="sigmoid",
        mask_ratio=MASK_RATIO,
    )


def plain_model(case: ModelCase) -> PlainAuxiliaryMAE:
    """The published design at the size of a case."""
    names = ("image_size", "patch_size", "width", "hidden", "heads", "depth", "decoder_depth")
    return PlainAuxiliaryMAE(case.channels, mask_ratio=MASK_RATIO, **{name: getattr(case, name) for name in names})


def check_ours(case: ModelCase, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Compares ours with the plain design at a case's widths, few and small otherwise: ("ok", "") or a status and its reason."""
    small = replace(
        case,
        channels=min(3, case.channels),
        image_size=min(4 * case.patch_size, case.image_size),
        depth=min(2, case.depth),
        decoder_depth=min(2, case.decoder_depth),
    )
    verdicts: list[Verdict] = []

    def check() -> None:
        # The same weights every time, and the caller's random numbers stay as they are.
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            verdicts.append(check_model(our_model(small), plain_model(small), device, dtype))

    status, reason = attempt(check, device)
    if status == "ok" and not verdicts[0].correct:
        return "wrong", f"with the weights of the plain published design, {verdicts[0].reason}"
    return status, reason


def _verdicts(
    case: ModelCase, models: dict[str, nn.Module], device: torch.device, dtype: torch.dtype, *, learns: bool
) -> dict[str, tuple[str, str]]:
    """Each of ours → ("ok", "") or a status and its reason; they end with other weights."""
    # As a graph it is the same model, whose replays are compared when it is captured.
    ours = {name: model for name, model in models.items() if isinstance(model, AuxMAE) and not name.endswith(GRAPHED)}
    small = check_ours(case, device, dtype)
    if small[0] != "ok":
        found = dict.fromkeys(ours, small)
    else:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            found = check_timed(ours, plain_model(case).to(device), case.batch, device, dtype, learns=learns)
    return found | {OURS + GRAPHED: found[OURS]}


def build_providers(
    case: ModelCase,
    *,
    peers: Sequence[str] = PEERS,
    compile_too: bool = False,
    recompute_too: bool = False,
    graph_too: bool = False,
) -> dict[str, nn.Module]:
    """Provider → model, on the CPU; a peer whose package is not installed is left out."""
    models: dict[str, nn.Module | None] = {OURS: our_model(case)}
    if compile_too:
        compiled = our_model(case)
        compiled.compile_blocks()
        models[OURS + COMPILED] = compiled
    if recompute_too:
        recomputed = our_model(case)
        recomputed.set_recompute(True)
        models[OURS + RECOMPUTED] = recomputed
    if graph_too:
        models[OURS + GRAPHED] = our_model(case)
    makers: dict[str, Callable[[ModelCase], nn.Module | None]] = {PLAIN: plain_model, JOINT: JointMAE, FUSED: vit_mae}
    for name in peers:
        models[name] = makers[name](case)
        if graph_too and name in (PLAIN, JOINT):
            models[name + GRAPHED] = makers[name](case)
        if compile_too and name == PLAIN:
            twin = plain_model(case)
            twin.compile(dynamic=False)
            models[name + COMPILED] = twin
    return {name: model for name, model in models.items() if model is not None}


def model_suite(case: ModelCase, **options: Any) -> list[dict[str, Any]]:
    """All rows of `model_passes`."""
    return [row for rows in model_passes(case, **options) for row in rows]


def model_passes(
    case: ModelCase,
    *,
    device: torch.device,
    repeats: int,
    peers: Sequence[str] = PEERS,
    compile_too: bool = False,
    recompute_too: bool = False,
    graph_too: bool = False,
    dtype: torch.dtype = torch.float32,
    limits: dict[str, Any] | None = None,
    passes: Sequence[str] = ("forward", "step"),
    suite: str = "model",
    visit: Visit = FIRST_VISIT,
    progress: Callable[[str], None] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of the model suite for one case, every provider: "forward" (no gradients), then "step" (with AdamW).

    Args:
        case: the size; device: where; repeats: rounds.
        peers: besides ours, see `PEERS`; compile_too, recompute_too, graph_too: those variants as well.
        dtype: of the autocast regions; fp32 means none.
        limits: of `roofline.ceilings`, for the rows' part of the best rate.
        passes: what is measured; suite: the rows' name for it.
        visit: which of several this is; the rows of all but the first have only times.
        progress: is told what goes on.

    Yields:
        Of a pass the rows {"suite", "case", "provider", "pass", "status", "reason", "median_ms", "samples_ms", "peak_bytes",
        "images_per_second", "parameters", "flops", their rate and part of the ceiling, "kernel_launches",
        "device_idle_share", "host_idle_share", "sizes", "dtype", "arch"}.  Figures are None unless the status is "ok".
    """
    if compile_too:
        # torch.compile keeps eight graphs of a function, those of earlier cases too; then it would run eagerly.
        torch.compiler.reset()
    torch.manual_seed(0)
    image = torch.rand(case.batch, case.channels, case.image_size, case.image_size, device=device)
    models = build_providers(
        case, peers=peers, compile_too=compile_too, recompute_too=recompute_too, graph_too=graph_too
    )  # fmt: skip
    models = {name: model.to(device) for name, model in models.items()}
    if progress and visit.first:
        progress(f"{case.name}: comparing {OURS} with the {PLAIN}")
    judged = _verdicts(case, models, device, dtype, learns="step" in passes) if visit.first else {}
    optimizers = {
        name: torch.optim.AdamW(
            model.parameters(), lr=1e-4, fused=device.type in ("cpu", "cuda"), capturable=device.type == "cuda"
        )
        for name, model in models.items()
    }

    def resident(name: str) -> Callable[[], list[torch.Tensor]]:
        def tensors() -> list[torch.Tensor]:
            # Empty until the first step, so that a forward pass is not charged for an optimiser.
            moments = [
                value for state in optimizers[name].state.values() for value in state.values() if isinstance(value, torch.Tensor)
            ]
            return [image, *models[name].parameters(), *models[name].buffers(), *moments]

        return tensors

    for pass_ in passes:
        works = {
            name: _forward(model, image, dtype) if pass_ == "forward" else _step(model, image, dtype, optimizers[name])
            for name, model in models.items()
            # Without gradients there is nothing to compute again.
            if not (pass_ == "forward" and name.endswith(RECOMPUTED)) and visit.wants((suite, case.name, name, pass_))
        }
        runs: dict[str, Callable[[], object]] = {
            name: replayed(work, device, optimizers[name]) if name.endswith(GRAPHED) else work for name, work in works.items()
        }
        outcomes = {}
        for name, work in runs.items():
            if progress:
                progress(f"{case.name}: {name}")
            verdict = judged.get(name, ("ok", ""))
            outcomes[name] = attempt(work, device) if verdict[0] == "ok" else verdict
            # Gradients of a step that ran out of memory would be in the way of all others.
            optimizers[name].zero_grad(set_to_none=True)
        able = {name: work for name, work in runs.items() if outcomes[name][0] == "ok"}
        timings = interleaved(
            able, device=device, repeats=repeats, resident={name: resident(name) for name in able}, visit=visit, progress=progress
        )
        rows = []
        for name in runs:
            status, reason = outcomes[name]
            timing = timings.get(name)
            row: dict[str, Any] = {
                "suite": suite,
                "case": case.name,
                "provider": name,
                "pass": pass_,
                "status": status,
                "reason": reason,
                "median_ms": timing and timing.median_ms,
                "samples_ms": timing.samples_ms if timing else [],
                # A replay allocates nothing; what its graph holds no counter tells.
                "peak_bytes": None if name.endswith(GRAPHED) else timing and timing.peak_bytes,
                "images_per_second": timing and 1e3 * case.batch / timing.median_ms,
                "parameters": sum(parameter.numel() for parameter in models[name].parameters()),
                "flops": _flops(case, name, pass_, device) if visit.first else None,
                "bytes": None,
                "sizes": asdict(case),
                "dtype": str(dtype).removeprefix("torch."),
                "arch": architecture(device),
            }
            row |= occupation(runs[name], device) if timing and visit.first else {}
            rows.append(row | achieved(row, limits))
        yield rows


def _loss(model: nn.Module, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with autocast(None if dtype is torch.float32 else dtype, image.device):
        loss: torch.Tensor = model(image).loss if isinstance(model, AuxMAE) else model(image)
    return loss


def _forward(model: nn.Module, image: torch.Tensor, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    @torch.no_grad()
    def work() -> torch.Tensor:
        return _loss(model, image, dtype)

    return work


def _step(
    model: nn.Module, image: torch.Tensor, dtype: torch.dtype, optimizer: torch.optim.Optimizer
) -> Callable[[], torch.Tensor]:
    def work() -> torch.Tensor:
        loss = _loss(model, image, dtype)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return work


def _flops(case: ModelCase, provider: str, pass_: str, device: torch.device) -> int | None:
    """Of one pass: counted on one image with a fresh model that is not compiled, for all images alike.

    What recomputing adds does not count, nor does the optimiser, which has no matrix product.  None where one image in fp32
    is too much for the memory.
    """
    name = provider.removesuffix(COMPILED).removesuffix(RECOMPUTED).removesuffix(GRAPHED)
    counted: list[int] = []

    def count() -> None:
        single = replace(case, batch=1)
        model = build_providers(single, peers=() if name == OURS else (name,))[name].to(device)
        image = torch.rand(1, case.channels, case.image_size, case.image_size, device=device)
        forward = _forward(model, image, torch.float32)
        counted.append(flops(forward if pass_ == "forward" else lambda: _loss(model, image, torch.float32).backward()))

    attempt(count, device)
    return case.batch * counted[0] if counted else None
