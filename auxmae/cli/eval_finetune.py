"""`auxmae eval --finetune`: the pre-trained network, all of it trained on labels, beside the same one from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.build import Data
    from auxmae.model.mae import AuxMAE
    from auxmae.settings.schema import SettingsTree


def measure(model: AuxMAE, data: Data, settings: SettingsTree, device: Any, out: Console) -> dict[str, object]:
    """Trains, prints the table and the comparison in words; the content of "finetuning" in the document."""
    from auxmae.cli.console import print_table
    from auxmae.cli.eval_probes import draw_labelled
    from auxmae.cli.eval_tables import finetune_table
    from auxmae.evaluation.finetuning import run_finetuning

    assert data.test is not None
    table = settings.eval
    test = draw_labelled(data.test, table.max_samples, settings.train.seed)
    if data.collection.has_label_maps or len(data.splits.test.blocks):
        # Windows here, of which a sample is a part or the whole.
        test = test.limited(table.max_samples)
    with out.status("Fine-tuning") as status:
        report = run_finetuning(
            model,
            data.train.limited(0),
            test,
            dense=data.collection.has_label_maps,
            pool=table.pool,
            labels_per_class=table.finetune_labels,
            steps=None if table.finetune_steps == "auto" else table.finetune_steps,
            seeds=table.finetune_seeds,
            learning_rate=table.finetune_learning_rate,
            bootstrap=table.bootstrap,
            seed=settings.train.seed,
            device=device,
            progress=lambda what: status.update(f"Fine-tuning: {what}"),
        )
    if report.reason:
        out.print(report.reason)
        return report.to_dict()
    print_table(out, finetune_table(report))
    for notice in report.notices:
        out.print(notice, style="yellow", highlight=False, soft_wrap=True)
    for comparison in report.comparisons:
        out.print(comparison.describe(), highlight=False, soft_wrap=True)
    return report.to_dict()
