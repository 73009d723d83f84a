"""Fine-tuning the pre-trained encoder, beside training the same network from scratch on the same labels for as long.

Shape letters: B batch, C channels, D features, K classes, N positions (1: one label an image), n images or windows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from auxmae.evaluation.features import patch_labels
from auxmae.evaluation.probes import Comparison, ProbeResult, draw_labels, untrained
from auxmae.evaluation.scores import bootstrap_interval, paired_bootstrap, score
from auxmae.model.pooling import pool_windows
from auxmae.training.optimization import learning_rate_at, parameter_groups

if TYPE_CHECKING:
    from auxmae.data.loading import Loader
    from auxmae.model.mae import AuxMAE

FINE_TUNED, FROM_SCRATCH = "fine-tuned", "from scratch"
PROBE = "whole network"

_WEIGHT_DECAY = 0.05
_WARM_UP = 0.1
_CLIP = 1.0
# Where nothing is said: enough for a few labels.
_STEPS = 150
# As many as there are draws of the labels.
_SEEDS = 5


@dataclass(frozen=True)
class FinetuneReport:
    """Both ways to train the whole network, or why there are none.

    Attributes:
        results: one for each way and number of labels, `probe` = "whole network".
        comparisons: fine-tuned against from scratch.
        reason: why there is no result; empty where there is.
        steps: number of labels per class → optimiser steps of each training.
        seeds: trainings behind each figure.
        train_samples, test_samples: labelled images, or patches, drawn from and tested on.
        notices: what the reader of the figures should know, one sentence each.
    """

    results: list[ProbeResult]
    comparisons: list[Comparison]
    reason: str = ""
    steps: dict[int, int] = field(default_factory=dict)
    seeds: int = 0
    notices: list[str] = field(default_factory=list)
    train_samples: int = 0
    test_samples: int = 0

    def to_dict(self) -> dict[str, object]:
        """The report as `auxmae eval --finetune --json` prints it."""
        return {
            "results": [result.to_dict() for result in self.results],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "reason": self.reason,
            "steps": {str(budget): steps for budget, steps in self.steps.items()},
            "seeds": self.seeds,
            "samples": {"train": self.train_samples, "test": self.test_samples},
            "notices": self.notices,
        }


class _Classifier(nn.Module):
    """An encoder that sees every patch, and a linear layer on its pooled features."""

    def __init__(self, encoder: AuxMAE, classes: int, pool: str, dense: bool) -> None:
        super().__init__()
        self.encoder, self.pool, self.dense = encoder, pool, dense
        self.head: nn.Linear | None = None
        self.classes = classes

    def forward(self, image: Tensor, valid: Tensor, channels: Tensor | None) -> Tensor:
        """(B, C, h, w) → (B, N, K)."""
        if self.dense:
            maps = self.encoder.dense_features(image, valid=valid, channels=channels, pool=self.pool)
            x_BND = maps.flatten(2).transpose(1, 2)
        else:
            x_BND = self.encoder.forward_features(image, valid=valid, channels=channels, pool=self.pool)[:, None]
        if self.head is None:
            # At 0, as in linear probing: no class is preferred before the first step.
            self.head = nn.Linear(x_BND.shape[2], self.classes).to(x_BND)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        logits: Tensor = self.head(x_BND)
        return logits


def run_finetuning(
    model: AuxMAE,
    train: Loader,
    test: Loader,
    *,
    dense: bool,
    pool: str,
    labels_per_class: Sequence[int],
    steps: int | None,
    seeds: int,
    learning_rate: float,
    bootstrap: int,
    seed: int,
    device: torch.device | str,
    progress: Callable[[str], None] | None = None,
) -> FinetuneReport:
    """Trains the whole network on labels, from the pre-trained weights and from random ones, and compares on the test part.

    Both ways share labels, order of batches, optimiser (AdamW, a linear warm-up and a cosine), number of steps and head.

    Args:
        model: the pre-trained encoder; left as it is.
        train, test: in a fixed order, not augmented.
        dense: one label for each patch instead of one for each image.
        pool: see `AuxMAE.forward_features`.
        labels_per_class: budgets; 0: all.
        steps: of each training; None: 150, or as many as show every labelled image or window once.
        seeds: trainings of each way and budget: other labels, weights and order; at most 5.
        learning_rate: the highest.
        bootstrap: resamples behind the intervals.
        seed: the first.
        device: where the model is.
        progress: told what is being done.
    """
    say = progress or (lambda text: None)
    table, owner, _ = _labels(train, model, dense)
    truth, test_owner, test_groups = _labels(test, model, dense)
    # Of an image's windows the first one stands for all.
    rows, places = np.nonzero((table >= 0) & (dense | _is_first(owner)[:, None]))
    y = table[rows, places]
    test_rows, test_places = np.nonzero((truth >= 0) & (dense | _is_first(test_owner)[:, None]))
    y_test = truth[test_rows, test_places]
    classes, groups = np.unique(y), test_groups[test_rows]
    if len(classes) < 2 or not len(y_test):
        reason = "labels of at least two classes in the training part, and some in the test part, are needed"
        return FinetuneReport([], [], f"No fine-tuning: {reason}.", train_samples=len(y), test_samples=len(y_test))
    results, comparisons, notices = [], [], []
    taken: dict[int, int] = {}
    for budget in labels_per_class:
        targets = []
        for chosen in draw_labels(y, budget, seed=seed):
            given = np.full_like(table, -1)
            given[rows[chosen], places[chosen]] = np.searchsorted(classes, y[chosen])
            if not dense:
                for windows in _windows(owner):
                    given[windows] = given[windows[0]]
            targets.append(given)
        right = {}
        wanted = max(int((given >= 0).any(axis=1).sum()) for given in targets)
        taken[budget] = steps or max(_STEPS, -(-wanted // train.batch_size))
        shown = taken[budget] * train.batch_size
        if shown < wanted:
            notices.append(
                f"With {budget or 'all'} labels, {steps} steps of {train.batch_size} show {shown} of {wanted} labelled images or "
                "windows: more steps (eval.finetune_steps) would show more."
            )
        for name in (FINE_TUNED, FROM_SCRATCH):
            predicted = []
            for number in range(min(seeds, _SEEDS)):
                given = targets[number % len(targets)]
                start = copy.deepcopy(model) if name == FINE_TUNED else untrained(model, seed=seed + number).to(device)
                network = _Classifier(start, len(classes), pool, dense)
                what = f"{name}, {budget or 'all'} labels, seed {number + 1}"
                _train(network, train, given, taken[budget], learning_rate, seed + number, device, partial(_tell, say, what))
                say(f"{what}: testing")
                found = _predict(network, test, test_owner, device, dense)
                predicted.append(classes[found[test_rows, test_places]])
            right[name] = np.stack(predicted) == y_test
            results.append(_result(name, budget, y_test, predicted, right[name], groups, bootstrap, seed))
        difference = paired_bootstrap(right[FINE_TUNED], right[FROM_SCRATCH], groups, resamples=bootstrap, seed=seed)
        ours, theirs = (float(right[name].mean()) for name in (FINE_TUNED, FROM_SCRATCH))
        comparisons.append(Comparison(PROBE, budget, f"network {FROM_SCRATCH}", ours, theirs, difference))
    return FinetuneReport(results, comparisons, "", taken, min(seeds, _SEEDS), notices, len(y), len(y_test))


def _tell(say: Callable[[str], None], what: str, done: str) -> None:
    say(f"{what}: {done}")


def _result(
    name: str,
    budget: int,
    truth: NDArray[np.int64],
    predicted: list[NDArray[np.int64]],
    right: NDArray[np.bool_],
    groups: NDArray[np.int64],
    bootstrap: int,
    seed: int,
) -> ProbeResult:
    scores = [score(truth, one) for one in predicted]
    accuracy = [one.accuracy for one in scores]
    return ProbeResult(
        name,
        PROBE,
        budget,
        float(np.mean(accuracy)),
        float(np.mean([one.average_accuracy for one in scores])),
        bootstrap_interval(right, groups, resamples=bootstrap, seed=seed),
        float(np.mean([one.macro_f1 for one in scores])),
        float(np.mean([one.kappa for one in scores])),
        float(np.std(accuracy)),
        len(predicted),
    )


def _labels(loader: Loader, model: AuxMAE, dense: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(n, N) class of each sample's image, or of each of its patches, −1: none; (n,) which image it is a window of; and (n,)
    which group it belongs to.
    """
    parts, owners, groups = [], [], []
    count = 0
    for batch in loader:
        numbers = torch.arange(count, count + len(batch.image)) if batch.image_number is None else batch.image_number
        owners.append(numbers.cpu().numpy())
        groups.append((numbers if batch.group is None else batch.group).cpu().numpy())
        count += len(batch.image)
        if not dense:
            parts.append(batch.label[:, None])
        elif batch.label_map is not None:
            parts.append(patch_labels(batch.label_map, model.patch_size))
    owner, group = (np.concatenate(found) if found else np.zeros(0, dtype=np.int64) for found in (owners, groups))
    return torch.cat(parts).cpu().numpy() if parts else np.full((len(owner), 1), -1, dtype=np.int64), owner, group


def _is_first(owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether a window is the first one of its image."""
    first = np.zeros(len(owner), dtype=bool)
    first[np.unique(owner, return_index=True)[1]] = True
    return first


def _windows(owner: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of the windows of each image."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(owner[order])) + 1)


def _train(
    network: _Classifier,
    loader: Loader,
    labels: NDArray[np.int64],
    steps: int,
    learning_rate: float,
    seed: int,
    device: torch.device | str,
    progress: Callable[[str], None],
) -> None:
    """Cross-entropy on the images that have a label, in an order that the seed alone decides."""
    wanted = np.flatnonzero((labels >= 0).any(axis=1))
    random = np.random.default_rng([seed, 1])
    queue: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    optimizer: torch.optim.Optimizer | None = None
    schedule: Any = None

    def factor(step: int) -> float:
        # Neither the first step nor the last one is at a rate of 0.
        return learning_rate_at((step + 1) / (steps + 1), peak=1.0, final=0.0, warmup=_WARM_UP)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.train()
        for step in range(steps):
            while len(queue) < min(loader.batch_size, len(wanted)):
                queue = np.concatenate([queue, random.permutation(wanted)])
            rows, queue = queue[: loader.batch_size], queue[loader.batch_size :]
            image, valid, _, _ = loader.dataset.fetch(rows.tolist())
            target = torch.from_numpy(labels[rows]).to(device)
            logits = network(image.to(device), valid.to(device), loader.channels)
            if optimizer is None:
                optimizer = torch.optim.AdamW(parameter_groups(network, _WEIGHT_DECAY), lr=learning_rate)
                schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            if step % 10 == 0:
                progress(f"step {step + 1}/{steps}, loss {loss.item():.3f}")


@torch.inference_mode()
def _predict(
    network: _Classifier, loader: Loader, owner: NDArray[np.int64], device: torch.device | str, dense: bool
) -> NDArray[np.int64]:
    """(n, N) indices of classes; the windows of one image have one, that of their probabilities' mean (`pool_windows`)."""
    network.eval()
    parts, counts = [], []
    for batch in loader:
        parts.append(network(batch.image.to(device), batch.valid.to(device), batch.channels).softmax(2).cpu())
        counts.append(batch.valid.flatten(1).sum(1).cpu())
    probability, valid = torch.cat(parts), torch.cat(counts)[:, None]
    if not dense:
        for rows in _windows(owner):
            probability[rows] = pool_windows(probability[rows], valid[rows])
    return probability.argmax(2).numpy()
