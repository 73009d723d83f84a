"""`auxmae.train` and what else is public: settings in every form, and what a training leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from auxmae_kernels import dispatch

import auxmae
from auxmae import api
from auxmae.errors import SettingsError, UsageError
from auxmae.settings import load_settings
from auxmae.training import session
from auxmae.training.progress import SilentReporter


@pytest.mark.parametrize("settings", [{"trian": {}}, {"trian": 5}, {"trian": {"max_steps": 3}}])
def test_a_table_that_there_is_none_of_is_named(settings):
    with pytest.raises(SettingsError, match=r"^trian.*did you mean 'train"):
        api.train(settings)


def test_public_names_are_listed_and_there():
    assert set(auxmae.__all__) <= set(dir(auxmae))
    assert all(getattr(auxmae, name) is not None for name in auxmae.__all__)
    assert issubclass(SettingsError, auxmae.AuxMAEError)


def test_settings_in_every_form(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "train", lambda settings, **options: settings)
    loaded = load_settings(None, tables={"train": {"max_steps": 7, "betas": [0.5, 0.75]}, "data": {"channels": ["a", "b"]}})
    (tmp_path / "some.toml").write_text('train = {max_steps = 7, betas = [0.5, 0.75]}\ndata = {channels = ["a", "b"]}\n')
    tables = {
        "train": {"max_steps": np.int64(7), "betas": np.array([0.5, 0.75])},
        "data": {"channels": (np.str_("a"), "b")},
    }
    defaults = load_settings().settings
    # Of the forms only none at all reads it.
    (tmp_path / "auxmae.toml").write_text("[train]\nepochs = 3\nmax_steps = 8\n")
    for given in (loaded, loaded.settings, tables, "some.toml", tmp_path / "some.toml"):
        assert api.train(given) == loaded.settings
    assert api.train({}) == defaults
    assert api.train() == load_settings().settings
    assert api.train().train.max_steps == 8
    for wrong in (7, ["some.toml"], {"train"}):
        with pytest.raises(TypeError, match="settings must be"):
            api.train(wrong)


def test_a_run_that_goes_on_takes_and_reads_no_other_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "train", lambda settings, **options: options["resume"])
    for given in ({"train": {"max_steps": 4}}, {}, load_settings(), load_settings().settings, "some.toml"):
        with pytest.raises(UsageError, match="settings cannot be given with it"):
            api.train(given, resume="run")
    (tmp_path / "auxmae.toml").write_text("[train]\nmax_stepss = 3\n")
    monkeypatch.setenv("AUXMAE_TRAIN__EPOCHS", "many")
    assert api.train(resume="run") == "run"
    with pytest.raises(SettingsError):
        api.train(resume=None)


def test_a_training_leaves_threads_determinism_and_backend_as_they_were(tmp_path, monkeypatch):
    monkeypatch.delenv("AUXMAE_KERNELS", raising=False)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), dispatch.backend()
    seen = []

    class Stop(Exception):
        pass

    def build_data(*_, **__):
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), dispatch.backend()))
        raise Stop

    monkeypatch.setattr(session, "build_data", build_data)
    settings = {
        "data": {"source": "synthetic"},
        "train": {"deterministic": True},
        "run": {"folder": str(tmp_path / "run"), "threads": before[0] + 1, "device": "cpu"},
        "kernels": {"backend": "torch"},
    }
    with pytest.raises(Stop):
        api.train(settings)
    assert seen == [(before[0] + 1, True, "torch")]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), dispatch.backend()) == before


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_training_learns_where_the_caller_has_switched_gradients_off(tmp_path, off):
    model = {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "image_size": 16}
    data = {"source": "synthetic", "synthetic_images": 16}
    with off():
        result = api.train({"model": model, "data": data, "train": {"max_steps": 2}, "run": {"folder": str(tmp_path / "run")}})
        assert not torch.is_grad_enabled()
    assert result.outcome.step == 2


def test_what_looks_wrong_is_a_warning_in_python_unless_a_reporter_is_told(tmp_path, recwarn):
    images = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)
    images[:, 1] = 5
    np.save(tmp_path / "images.npy", images)
    model = {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1}
    settings = {"model": model, "data": {"source": str(tmp_path / "images.npy")}, "train": {"max_steps": 1}}
    with pytest.warns(UserWarning, match="C2: constant"):
        api.train({**settings, "run": {"folder": str(tmp_path / "first")}})
    recwarn.clear()
    api.train({**settings, "run": {"folder": str(tmp_path / "second")}}, reporter=SilentReporter())
    assert not [warning for warning in recwarn if "constant" in str(warning.message)]
