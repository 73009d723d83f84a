"""The comparison script: its floors read what they say, its probes find structure and no more, its halves do not mix."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from auxmae.build import build_model
from auxmae.data.loading import Batch
from auxmae.evaluation.feature_floors import relations_extractor
from auxmae.settings.schema import SettingsTree


@pytest.fixture(scope="module")
def script(repository):
    """The script as it is run: with its own folder to import from."""
    spec = importlib.util.spec_from_file_location("representation", repository / "benchmarks" / "representation.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        spec.loader.exec_module(module)
    return module


def test_scene_floors_read_the_centre_of_every_patch(script):
    x = torch.rand(4, 7, 8)
    floors = script.scene_floors(x, 3, seed=0)
    spectrum = floors["raw spectrum"].reshape(3, 3, 4)
    assert np.array_equal(spectrum[1, 1], x[:, 4, 4])
    assert np.array_equal(spectrum[2, 2], x[:, 6, 7])  # the last patch's centre lies beyond the edge
    around = floors["3 × 3 patch"].reshape(3, 3, 4, 3, 3)
    assert np.array_equal(around[1, 1], x[:, 3:6, 3:6])


def test_channel_relations_are_those_of_the_evaluation(script):
    images = torch.rand(3, 4, 5, 6) * torch.tensor([1.0, 2.0, 3.0, 0.0])[:, None, None]
    ours = relations_extractor()(Batch(images, torch.ones_like(images, dtype=torch.bool), torch.full((3,), -1), None))
    found = script.image_floors(images, np.arange(3), seed=0)["channel relations"]
    assert found.shape == tuple(ours.shape) == (3, 2 * 4 + 6 + 2 * 4)
    deviations = slice(4, 8)  # of samples in the script, as torch has it, of all pixels in the evaluation
    ours[:, deviations] *= (30 / 29) ** 0.5
    assert np.allclose(found, ours, atol=1e-6)


@pytest.mark.parametrize("probe", ["logistic", "ridge", "knn"])
def test_probes_find_what_is_there_and_chance_where_labels_are_shuffled(script, probe):
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 900)
    x = random.standard_normal((900, 6))
    x[np.arange(900), y] += 6  # one direction a class, so that a linear map suffices
    args = script.arguments(["--budgets", "20,0", "--draws", "2", "--probe", probe])
    directions = [("test part", np.arange(450), np.arange(450, 900))]
    assert min(min(values) for values in script.measure(x, y, directions, args, 0).values()) > 0.9
    shuffled = script.measure(x, random.permutation(y), directions, args, 0)
    assert all(abs(np.mean(values) - 1 / 3) < 0.1 for values in shuffled.values())


@pytest.mark.parametrize("probe", ["logistic", "ridge", "knn"])
def test_turning_features_into_the_space_of_few_samples_changes_no_prediction(script, probe):
    random = np.random.default_rng(3)
    y = random.integers(0, 3, 330)
    x = random.standard_normal((330, 200)) * random.uniform(0.1, 10, 200) + 5
    x[np.arange(330), y] += 10
    scaler = script.StandardScaler().fit(x[:30])
    plain, turned = (scaler.transform(x[:30]), scaler.transform(x[30:])), script.standardised(x[:30], x[30:])
    assert turned[0].shape == (30, 30)
    predictions = [script.PROBES[probe](known, y[:30], 0).predict(held) for known, held in (plain, turned)]
    assert 0.4 < (predictions[0] == y[30:]).mean() < 0.95  # hard enough for a difference to show
    assert (predictions[0] == predictions[1]).mean() > 0.99  # the solver stops at 1e-3


def test_features_of_a_scene_lie_where_its_patches_do(script):
    torch.manual_seed(0)
    model = script.AuxMAE(3, image_size=4, patch_size=1, width=8, depth=1, heads=2, cls_tokens=False).eval()
    x = torch.rand(3, 6, 7)
    found = script.scene_features(model, x, "concat", np.array([5 * 7 + 6, 2 * 7 + 3]))
    corner = torch.nn.functional.pad(x[None], (0, 1, 0, 1), mode="replicate")[:, :, 3:7, 4:8]
    with torch.inference_mode():
        for row, window in zip(found, (corner, x[None, :, 0:4, 1:5]), strict=True):
            assert np.allclose(row, model.dense_features(window, pool="concat")[0, :, 2, 2], atol=1e-5)


def test_every_encoder_sees_images_as_those_that_it_was_trained_on_were_scaled(script, monkeypatch):
    given = {"data": {"synthetic_images": 40, "split": "auto"}, "model": {"image_size": 16, "width": 16, "depth": 1, "heads": 2}}
    settings = SettingsTree.model_validate(given)
    data = script.build_data(settings, augment=False)
    standard = script.build_data(
        settings.model_copy(update={"scaling": settings.scaling.model_copy(update={"method": "standard"})})
    )
    models = {}
    for name, scaling in (("first", data.scaling), ("other", standard.scaling)):
        models[name] = build_model(settings, data)
        models[name].scaling = scaling.to_dict()
    seen = []
    monkeypatch.setattr(script, "image_features", lambda model, images, pool: seen.append(images))
    monkeypatch.setattr(script, "measure", lambda *_: {})
    args = script.arguments(["--no-floors"])
    script.measured_images(models, data, args, 0)
    first, other = seen
    raw = data.scaling.invert(first)
    assert torch.allclose(other, standard.scaling.apply(raw), atol=1e-4)
    assert abs(float(other.mean())) < 0.1 < abs(float(first.mean()))


@pytest.mark.parametrize("name", ["joint", "vit-mae"])
def test_peers_are_trained_and_read_at_any_size(script, name):
    if name == "vit-mae":
        pytest.importorskip("transformers", reason="transformers is not installed")
    given = {
        "data": {"synthetic_images": 40},
        "model": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
    }
    training = {"batch_size": 4, "optimizer": "muon" if name == "joint" else "adamw", "learning_rate": 3e-3}
    encoders = []
    for steps in (1, 60):
        settings = SettingsTree.model_validate({**given, "train": {**training, "max_steps": steps}})
        encoder, done = script.train_peer(name, settings)
        assert done == steps
        encoders.append(encoder)
    first, last = encoders
    head = last.network.head if name == "joint" else last.network.model.decoder.decoder_pred
    assert head.in_features == build_model(settings, script.build_data(settings)).config["decoder_width"] == 8
    image = next(iter(script.build_data(settings).train)).image
    with torch.no_grad():
        before, after = (torch.stack([encoder(image) for _ in range(8)]).mean() for encoder in (first, last))
        assert after < 0.95 * before
        whole = last.forward_features(image, pool="moments")
        wider = last.forward_features(torch.rand(2, 13, 24, 24), pool="moments")
    assert whole.shape[1] == wider.shape[1] == (13 if name == "joint" else 1) * 2 * 16
    image[:, 0] += 1
    with torch.no_grad():
        other = last.forward_features(image, pool="moments")
    # Everything attends to everything, so that one channel is in the features of all.
    assert (other != whole).float().mean() > 0.9


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--budgets", "a"], "--budgets: not whole numbers"),
        (["--seeds", "0;1"], "--seeds: not whole numbers"),
        (["--draws", "0"], "--draws: not a whole number of at least 1"),
        (["--minutes", "0"], "--minutes is above 0"),
        (["--json", "no/such/out.json"], "there is no folder"),
        (["--json", "/"], "that is a folder"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(script, monkeypatch, capsys, argv, told):
    monkeypatch.setattr(script, "run", lambda args: pytest.fail("trained"))
    with pytest.raises(SystemExit):
        script.main(argv)
    assert told in capsys.readouterr().err


def test_data_that_are_not_there_are_told_in_a_line(script):
    with pytest.raises(SystemExit, match=r"^error: no/such: no such file or folder \(check data.source"):
        script.main(["--data", "no/such", "--steps", "1"])


@pytest.mark.slow
def test_a_scene_is_compared_from_files_to_table(script, tmp_path, capsys):
    random = np.random.default_rng(1)
    labels = (np.arange(24)[:, None] // 6 + np.zeros((24, 24), int)) % 2 + 1
    pixels = random.random((6, 24, 24)) + labels * np.arange(6)[:, None, None]
    np.savez(tmp_path / "scene.npz", Y=pixels.astype(np.float32), label=labels.astype(np.uint8))
    options = ["data.key=Y", "data.axes=CHW", "data.layout=scenes", "model.image_size=8", "model.patch_size=2", "model.width=16"]
    argv = ["--data", str(tmp_path / "scene.npz"), "--labels", ":label", "--steps", "2", "--budgets", "5", "--draws", "2"]
    argv += ["--variants", "default,slotwise", "--json", str(tmp_path / "out.json")]
    script.main(argv + [part for option in options for part in ("--set", option)])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["average_accuracy"]
    assert {"default", "slotwise", "random initialisation", "raw spectrum"} <= set(result)
    assert np.mean(result["raw spectrum"]["left → right, 5"]) > 0.9  # the classes differ in their spectra
    assert "| raw spectrum | " in printed
    with pytest.raises(SystemExit, match="vit-mae give no features of single places"):
        script.main([*argv[:-4], "--variants", "default,joint", *(part for option in options for part in ("--set", option))])
    with pytest.raises(SystemExit, match="unknown variant 'slotwize'"):
        script.main([*argv[:-2], "--variants", "slotwize"])
