"""Compares ways to pre-train at equal training time, by what probes read from the frozen features, beside the floors.

    python benchmarks/representation.py --minutes 2 --variants default,shared,slotwise --json out.json
    python benchmarks/representation.py --data scene.mat --labels :label --set data.key=Y --preset scene --minutes 10

A labelled scene is halved: labels from the left half, test on the right one, and the reverse; the encoder is trained on
all of its pixels, without labels.  A labelled set of images gives its training part to the probes and its test part to
the figures.  Floors and probes are scikit-learn's, written here on their own, so that `auxmae eval` can be checked by it.

Shape letters: C channels, D features, n samples; h, w pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peer_encoders import PEERS, PeerEncoder, train_peer
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from auxmae.benchmark.environment import environment
from auxmae.build import Data, build_data
from auxmae.data.statistics import Scaling
from auxmae.errors import AuxMAEError
from auxmae.evaluation.features import patch_labels
from auxmae.evaluation.probes import untrained
from auxmae.model.mae import AuxMAE
from auxmae.settings import load_settings
from auxmae.settings.schema import SettingsTree
from auxmae.training.session import train

Array = NDArray[Any]
# Samples for the probe and for the test of each direction: (rows of x and y for training, rows for testing).
Direction = tuple[str, Array, Array]

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "slotwise": ["model.channel_attention=slotwise"],
    "shared": ["masking.strategy=shared"],
    "mixed": ["masking.strategy=mixed"],
    "channel": ["masking.strategy=channel"],
    "normalised-targets": ["loss.normalize=true"],
    "channel-sampling": ["model.channel_groups=1", "data.channel_sampling=0.5"],
    "wavelength": ["model.channel_embedding=wavelength"],
    "single-channels": ["model.channel_groups=1"],
    "standard-scaling": ["scaling.method=standard"],
    # Each optimiser at the learning rate that served it best.
    "adamw": ["train.optimizer=adamw", "train.learning_rate=3e-3"],
    "joint": [],
    "vit-mae": ["train.optimizer=adamw", "train.learning_rate=3e-3"],
}
ALL_VARIANTS = (*VARIANTS, "equal-decoder")
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FILTERS = 256


def numbers(text: str) -> str:
    """Whole numbers, separated by commas, none below 0; as they were given."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"not whole numbers, separated by commas: {text!r}")
    return text


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"not a whole number of at least {least}: {text!r}")
        return int(text)

    return number


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="as of `auxmae train`")
    parser.add_argument("--labels", default="auto", help="as of `auxmae train`")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="any setting")
    parser.add_argument("--minutes", type=float, default=2.0, help="training time of every variant, CPU time of one thread")
    parser.add_argument("--steps", type=at_least(0), default=0, help="steps of every variant, in place of minutes")
    parser.add_argument(
        "--stride", type=at_least(1), default=2, help="of a scene, every so manieth patch of every so manieth row is probed"
    )
    parser.add_argument("--variants", default="default", help=f"of {', '.join(ALL_VARIANTS)}")
    parser.add_argument("--seeds", type=numbers, default="0", help="of weights, masks, crops and label draws: 0,1,2")
    parser.add_argument("--budgets", type=numbers, default="5,20,0", help="labels a class; 0: all")
    parser.add_argument("--draws", type=at_least(1), default=5, help="draws of the labels for each seed")
    parser.add_argument("--probe", choices=PROBES, default="logistic")
    pools = ("mean", "concat", "attention", "moments", "moments+embedding")
    parser.add_argument("--pool", choices=pools, help="of the features; default: the settings' eval.pool")
    parser.add_argument("--no-floors", action="store_true", help="leave the floors out")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args(argv)
    if not args.steps and not args.minutes > 0:
        # Without a limit of either kind no training would end.
        parser.error("--minutes is above 0, or --steps is given")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}")
    if args.json and args.json.is_dir():
        parser.error(f"--json {args.json}: that is a folder; name a file")
    return args


def trained(args: argparse.Namespace, variant: str, seed: int, folder: Path) -> tuple[AuxMAE | PeerEncoder, int, SettingsTree]:
    """Pre-trains a variant → (its encoder, steps, its settings)."""
    settings = settings_of(args, variant, seed, folder)
    if variant in PEERS:
        return *train_peer(variant, settings), settings
    # On a shared machine the clock on the wall measures the neighbours too.
    outcome = train(settings, clock=time.process_time)
    model = AuxMAE.from_pretrained(outcome.run / "checkpoints" / "last").eval()
    return model, outcome.outcome.step, settings


def settings_of(args: argparse.Namespace, variant: str, seed: int, folder: Path) -> SettingsTree:
    limits = [f"train.max_steps={args.steps or 10_000_000}", f"train.max_minutes={0 if args.steps else args.minutes}"]
    # Validation would take time from some variants and choose a checkpoint by a loss that differs between them.
    base = [f"data.source={args.data}", f"model.preset={args.preset}", f"data.labels={args.labels}", *limits]
    base += ["run.threads=1", f"train.seed={seed}", f"run.folder={folder}", "train.epochs=100000"]
    base += ["train.figure_every=0", "train.validate_every=1000000"]
    plain = load_settings(overrides=[*base, *args.overrides], environ={}, cwd=folder.parent).settings
    if plain.data.split == "auto" and plain.data.source != "synthetic":
        # Every unlabelled pixel of a scene is trained on; the halves are cut from its labels.
        base += ["data.validation_fraction=0.0", "data.test_fraction=0.0"]
    extra = VARIANTS.get(variant, [])
    if variant == "equal-decoder":
        model = plain.model
        extra = [f"model.decoder_{key}={getattr(model, key)}" for key in ("width", "depth", "heads")]
    return load_settings(overrides=[*base, *args.overrides, *extra], environ={}, cwd=folder.parent).settings


# ---- features ------------------------------------------------------------------------------------------------------


def scene_of(data: Data, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """The first scene, scaled (C, h, w), not valid → 0, and its labels (h, w)."""
    image = data.collection.read(0)
    labels = data.collection.read_labels(0)
    if labels is None:
        raise SystemExit("the scene has no label raster: name it with --labels")
    x = scaling.apply(torch.from_numpy(np.asarray(image.pixels, dtype=np.float32)))
    return x.masked_fill(~torch.from_numpy(image.valid), 0.0), torch.from_numpy(labels)


@torch.inference_mode()
def scene_features(model: AuxMAE, x: Tensor, pool: str, rows: Array) -> Array:
    """(n, D): of every patch of the scene in `rows` (row-major numbers), as the encoder sees it amid a window of the size that
    it was trained on; where the window reaches beyond the scene, the edge is repeated."""
    step = model.patch_size
    side = -(-model.image_size // step)
    before, after = side // 2 * step, (side - side // 2) * step
    columns = model.grid(x.shape[1], x.shape[2])[1]
    padded = F.pad(x[None], (before, after, before, after), mode="replicate")[0]
    found = []
    for start in range(0, len(rows), 64):
        corners = [(number // columns * step, number % columns * step) for number in rows[start : start + 64].tolist()]
        windows = torch.stack([padded[:, top : top + side * step, left : left + side * step] for top, left in corners])
        found.append(model.dense_features(windows, pool=pool)[:, :, side // 2, side // 2])
    return torch.cat(found).numpy()


@torch.inference_mode()
def image_features(model: AuxMAE | PeerEncoder, images: Tensor, pool: str) -> Array:
    return torch.cat([model.forward_features(part, pool=pool) for part in images.split(64)]).numpy()


def random_filters(channels: int, seed: int) -> Tensor:
    return torch.randn(FILTERS, channels, 3, 3, generator=torch.Generator().manual_seed(seed)) / (9 * channels) ** 0.5


def scene_floors(x: Tensor, patch_size: int, seed: int) -> dict[str, Array]:
    """Features that need no training, at the centre of every patch: name → (patches, D)."""
    height, width = -(-x.shape[1] // patch_size), -(-x.shape[2] // patch_size)
    rows = (torch.arange(height) * patch_size + patch_size // 2).clamp(max=x.shape[1] - 1)
    columns = (torch.arange(width) * patch_size + patch_size // 2).clamp(max=x.shape[2] - 1)

    def at_centres(maps: Tensor) -> Array:
        return maps[:, rows][:, :, columns].flatten(1).T.numpy()

    padded = F.pad(x[None], (1, 1, 1, 1), mode="replicate")
    patches = F.unfold(padded, 3)[0].reshape(x.shape[0], 9, *x.shape[1:])
    flat = patches.flatten(0, 1)
    components = PCA(min(64, *flat.flatten(1).shape), random_state=seed).fit(flat.flatten(1).T.numpy())
    standard = (padded - x.mean((1, 2))[:, None, None]) / x.std((1, 2)).clamp(min=1e-12)[:, None, None]
    return {
        "raw spectrum": at_centres(x),
        "3 × 3 patch": at_centres(flat),
        "statistics": at_centres(torch.cat([patches.mean(1), patches.std(1)])),
        "PCA of patches": components.transform(at_centres(flat)),
        "random convolutions": at_centres(F.relu(F.conv2d(standard, random_filters(x.shape[0], seed)))[0]),
    }


def relations(images: Array) -> Array:
    """(n, C, h, w) → (n, D): correlations of pairs of channels, root mean squares of the differences of neighbours."""
    pairs = np.triu_indices(images.shape[1], 1)
    with np.errstate(invalid="ignore"):  # a constant channel correlates with nothing
        related = np.stack([np.nan_to_num(np.atleast_2d(np.corrcoef(image.reshape(len(image), -1)))[pairs]) for image in images])
    changes = [np.sqrt(np.square(np.diff(images, axis=axis)).mean((2, 3))) for axis in (2, 3)]
    return np.concatenate([related, *changes], 1)


def image_floors(images: Tensor, fit: Array, seed: int) -> dict[str, Array]:
    """Features of whole images (n, C, h, w) that need no training: name → (n, D); PCA is fitted on the rows `fit`."""
    flat = images.flatten(1).numpy()
    deviation = images.std((0, 2, 3)).clamp(min=1e-12)[:, None, None]
    filters, centred = random_filters(images.shape[1], seed), (images - images.mean((0, 2, 3))[:, None, None]) / deviation
    responses = torch.cat([F.relu(F.conv2d(part, filters)).mean((2, 3)) for part in centred.split(64)])
    components = PCA(min(64, len(fit), flat.shape[1]), random_state=seed).fit(flat[fit])
    statistics = torch.cat([images.mean((2, 3)), images.std((2, 3))], 1).numpy()
    return {
        "raw pixels": flat,
        "statistics": statistics,
        "channel relations": np.concatenate([statistics, relations(images.double().numpy())], 1),
        "PCA of images": components.transform(flat),
        "random convolutions": responses.numpy(),
    }


# ---- probes --------------------------------------------------------------------------------------------------------


def logistic(x: Array, y: Array, seed: int) -> Any:
    """L2 strength chosen on a third of the training samples, then fitted on all of them."""
    best = 1.0
    if np.bincount(y)[np.unique(y)].min() >= 2 and len(y) >= 3 * len(np.unique(y)):
        a, b, ya, yb = train_test_split(x, y, test_size=1 / 3, stratify=y, random_state=seed)
        scores = [LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(a, ya).score(b, yb) for c in STRENGTHS]
        best = STRENGTHS[int(np.argmax(scores))]
    return LogisticRegression(C=best, max_iter=500, tol=1e-3).fit(x, y)


PROBES: dict[str, Callable[[Array, Array, int], Any]] = {
    "logistic": logistic,
    "ridge": lambda x, y, seed: RidgeClassifier().fit(x, y),
    "knn": lambda x, y, seed: KNeighborsClassifier(min(5, len(y))).fit(x, y),
}


def standardised(known: Array, held: Array) -> tuple[Array, Array]:
    """Both standardised by the training samples `known`.

    Where these are fewer than the features, both are turned into the space that the training samples span.  No probe here
    sees more than that: weights under an L2 penalty lie in it, and what sticks out of it adds the same to a test sample's
    distance to every training sample.
    """
    scaler = StandardScaler().fit(known)
    known, held = scaler.transform(known), scaler.transform(held)
    if known.shape[1] <= len(known):
        return known, held
    turn = PCA(svd_solver="full").fit(known)
    return turn.transform(known), turn.transform(held)


def measure(x: Array, y: Array, directions: list[Direction], args: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """ "direction, budget" → average accuracy of every draw of the labels."""
    figures: dict[str, list[float]] = {}
    for name, fit, test in directions:
        classes = np.unique(y[fit])
        for budget in (int(text) for text in args.budgets.split(",")):
            found = []
            for draw in range(args.draws if budget else 1):
                random = np.random.default_rng([seed, budget, draw])
                some = [random.permutation(fit[y[fit] == c])[: budget or None] for c in classes]
                rows = np.concatenate(some)
                known, held = standardised(x[rows], x[test])
                right = PROBES[args.probe](known, y[rows], seed).predict(held) == y[test]
                found.append(float(np.mean([right[y[test] == c].mean() for c in np.unique(y[test])])))
            figures[f"{name}, {budget or 'all'}"] = found
    return figures


def measured_scene(
    models: dict[str, AuxMAE], data: Data, args: argparse.Namespace, seed: int
) -> dict[str, dict[str, list[float]]]:
    results = {}
    for name, model in models.items():
        x, label_map = scene_of(data, Scaling.from_dict(model.scaling or {}))
        y = patch_labels(label_map[None], model.patch_size)[0].numpy()
        columns = model.grid(x.shape[1], x.shape[2])[1]
        place = np.arange(len(y))
        used = np.flatnonzero((y >= 0) & (place // columns % args.stride == 0) & (place % columns % args.stride == 0))
        y, left = y[used], used % columns < columns // 2
        half = [np.flatnonzero(left), np.flatnonzero(~left)]
        directions: list[Direction] = [("left → right", half[0], half[1]), ("right → left", half[1], half[0])]
        results[name] = measure(scene_features(model, x, args.pool, used), y, directions, args, seed)
        if name == "random initialisation" and not args.no_floors:
            for floor, features in scene_floors(x, model.patch_size, seed).items():
                results[floor] = measure(features[used], y, directions, args, seed)
    return results


def measured_images(
    models: dict[str, AuxMAE | PeerEncoder], data: Data, args: argparse.Namespace, seed: int
) -> dict[str, dict[str, list[float]]]:
    assert data.test is not None
    parts = [[*loader.limited(2000)] for loader in (data.train, data.test)]
    images = torch.cat([batch.image for part in parts for batch in part])
    y = torch.cat([batch.label for part in parts for batch in part]).numpy()
    first = sum(len(batch.image) for batch in parts[0])
    rows = np.arange(len(y))
    directions: list[Direction] = [("test part", rows[(y >= 0) & (rows < first)], rows[(y >= 0) & (rows >= first)])]
    results = {}
    for name, model in models.items():
        # Everybody sees images as those that it was trained on were scaled.
        own = data.scaling if model.scaling is None else Scaling.from_dict(model.scaling)
        seen = images if own.to_dict() == data.scaling.to_dict() else own.apply(data.scaling.invert(images))
        results[name] = measure(image_features(model, seen, args.pool), y, directions, args, seed)
    if not args.no_floors:
        for floor, features in image_floors(images, directions[0][1], seed).items():
            results[floor] = measure(features, y, directions, args, seed)
    return results


# ---- the comparison ------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures everything that was asked for."""
    where = environment(torch.device("cpu"))  # as it is before anything is measured
    names = args.variants.split(",")
    unknown = [name for name in names if name not in ALL_VARIANTS]
    if unknown:
        raise SystemExit(f"unknown variant {unknown[0]!r}: expected of {', '.join(ALL_VARIANTS)}")
    figures: dict[str, dict[str, list[float]]] = {}
    trainings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in (int(text) for text in args.seeds.split(",")):
            models: dict[str, Any] = {}
            data = build_data(settings_of(args, names[0], seed, Path(scratch) / "data"), augment=False)
            dense = data.collection.has_label_maps
            if not dense and data.test is None:
                raise SystemExit("no images are held out: --set data.test_fraction=0.15 does so")
            if dense and not set(PEERS).isdisjoint(names):
                raise SystemExit(f"{' and '.join(PEERS)} give no features of single places, as a scene with a label raster needs")
            for name in names:
                began = time.process_time()
                models[name], steps, settings = trained(args, name, seed, Path(scratch) / f"{name}-{seed}")
                used = round(time.process_time() - began, 1)
                trainings.append({"variant": name, "seed": seed, "steps": steps, "cpu_seconds": used})
                args.pool = args.pool or settings.eval.pool
            first = models[names[0]]
            if isinstance(first, AuxMAE):
                models["random initialisation"] = untrained(first, seed=seed + 1000)
            measured: Callable[..., dict[str, dict[str, list[float]]]] = measured_scene if dense else measured_images
            for name, cells in measured(models, data, args, seed).items():
                for cell, values in cells.items():
                    figures.setdefault(name, {}).setdefault(cell, []).extend(values)
    # Where the figures are written says nothing about them.
    asked = {key: value for key, value in vars(args).items() if key != "json"}
    return {"arguments": asked, "environment": where, "trainings": trainings, "average_accuracy": figures}


def table(result: dict[str, Any]) -> str:
    """Markdown: the mean average accuracy, and its standard deviation over draws and seeds."""
    figures = result["average_accuracy"]
    cells = list(next(iter(figures.values())))
    lines = ["| features | " + " | ".join(cells) + " |", "| --- |" + " --- |" * len(cells)]
    for name, row in figures.items():
        shown = [f"{np.mean(row[cell]):.3f}" + (f" ± {np.std(row[cell]):.3f}" if len(row[cell]) > 1 else "") for cell in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # an unfinished fit is judged by its accuracy like any other
    try:
        result = run(args)
    except AuxMAEError as error:
        raise SystemExit(f"error: {error}") from None
    print(table(result))
    for entry in result["trainings"]:
        print(f"{entry['variant']}, seed {entry['seed']}: {entry['steps']} steps, {entry['cpu_seconds']} s of CPU time")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
