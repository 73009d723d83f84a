"""The scikit-learn transformer: its features are the model's, and it behaves as scikit-learn's own do."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import auxmae
from auxmae.data.dataset import ImageDataset
from auxmae.data.image import ReadOptions
from auxmae.data.loading import Loader
from auxmae.data.opening import open_collection
from auxmae.data.splits import Part
from auxmae.data.statistics import Scaling
from auxmae.errors import AuxMAEError, CheckpointError, DataError, SettingsError
from auxmae.evaluation.features import extract_features
from auxmae.export.embed import embed
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import create_run

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    scaling = Scaling("minmax", "none", 1.0, False, NAMES, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    model = auxmae.AuxMAE(
        NAMES, image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, scaling=scaling.to_dict()
    )
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return str(path)


def images(count=9, channels=3, side=8, seed=0):
    return np.random.default_rng(seed).uniform(1, 30, (count, channels, side, side))


def test_features_are_those_of_the_model_on_scaled_pixels(folder):
    x = images()
    x[0, 1, 2, 3] = np.nan
    got = auxmae.FeatureExtractor(folder, batch_size=4, pool="concat").fit_transform(x)
    model = auxmae.AuxMAE.from_pretrained(folder)
    scaled = (x - np.array([1, 2, 3]).reshape(3, 1, 1)) / np.array([10, 20, 30]).reshape(3, 1, 1)
    expected = model.forward_features(torch.from_numpy(scaled).float(), pool="concat").detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    chosen = auxmae.FeatureExtractor(folder, channels=["c", "a"], pool="mean").fit_transform(x[:, [2, 0]])
    reference = model.forward_features(torch.from_numpy(scaled[:, [2, 0]]).float(), channels=["c", "a"]).detach().numpy()
    np.testing.assert_allclose(chosen, reference, rtol=1e-4, atol=1e-5)
    unscaled = auxmae.FeatureExtractor(model, scale=False).fit_transform(scaled)
    np.testing.assert_allclose(unscaled, auxmae.FeatureExtractor(folder).fit_transform(x), rtol=1e-4, atol=1e-5)


def test_channels_are_those_of_the_model(folder):
    x = images()[:, [2, 0]]
    expected = auxmae.FeatureExtractor(folder, channels=["c", "a"]).fit_transform(x)
    for channels in (("c", "a"), np.array(["c", "a"]), [2, 0], np.array([2, 0])):
        np.testing.assert_array_equal(auxmae.FeatureExtractor(folder, channels=channels).fit_transform(x), expected)
    model = auxmae.AuxMAE(["B02", "B03"], image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    with pytest.raises(DataError, match="did you mean 'B03'"):
        auxmae.FeatureExtractor(model, channels=["B02", "B003"]).fit(images(channels=2))
    with pytest.raises(DataError, match="channel index 3"):
        auxmae.FeatureExtractor(folder, channels=[3, 0]).fit(x)


def test_what_decides_the_features_is_taken_down_in_fit(folder):
    x = images()
    extractor = auxmae.FeatureExtractor(folder, pool="mean").fit(x)
    expected = extractor.transform(x)
    extractor.set_params(pool="concat", channels=["c", "a", "b"], scale=False, batch_size=1)
    np.testing.assert_allclose(extractor.transform(x), expected, rtol=1e-4, atol=1e-5)
    assert extractor.fit(x).transform(x).shape[1] == 3 * expected.shape[1]


def test_masked_entries_are_not_valid(folder):
    x = images()
    mask = x > 25
    expected = auxmae.FeatureExtractor(folder).fit_transform(np.where(mask, np.nan, x))
    got = auxmae.FeatureExtractor(folder).fit_transform(np.ma.masked_array(x, mask))
    np.testing.assert_array_equal(got, expected)
    plain = auxmae.FeatureExtractor(folder).fit(x).transform(np.ma.masked_array(x))
    np.testing.assert_array_equal(plain, auxmae.FeatureExtractor(folder).fit_transform(x))


def test_masks_of_single_images_count(folder):
    x = images()
    mask = x > 25
    mask[1] = False
    extractor = auxmae.FeatureExtractor(folder)
    expected = extractor.fit_transform(np.where(mask, np.nan, x))
    # The second image has no mask at all.
    several = [np.ma.masked_array(np.where(m, -9999, one), m) if m.any() else one for one, m in zip(x, mask, strict=True)]
    objects = np.empty(len(several), dtype=object)
    objects[:] = several
    for given in (several, tuple(several), objects):
        np.testing.assert_array_equal(extractor.fit_transform(given), expected)
    # No image has one.
    objects[:] = list(np.where(mask, np.nan, x))
    np.testing.assert_array_equal(extractor.fit_transform(objects), expected)


def test_it_clones_pickles_and_works_in_a_searched_pipeline(folder):
    x, y = images(24), np.arange(24) % 2
    extractor = auxmae.FeatureExtractor(folder, pool="attention")
    assert clone(extractor).get_params() == extractor.get_params()
    extractor.set_params(pool="mean").fit(x)
    again = pickle.loads(pickle.dumps(extractor))
    np.testing.assert_array_equal(again.transform(x), extractor.transform(x))
    assert len(extractor.get_feature_names_out()) == extractor.transform(x).shape[1] == 16
    pipeline = make_pipeline(auxmae.FeatureExtractor(folder), LogisticRegression())
    search = GridSearchCV(pipeline, {"featureextractor__pool": ["mean", "concat"]}, cv=2).fit(x, y)
    assert search.predict(x).shape == (24,)
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_wrong_inputs_are_named(folder):
    with pytest.raises(CheckpointError, match="no model"):
        auxmae.FeatureExtractor().fit(images())
    with pytest.raises(NotFittedError):
        auxmae.FeatureExtractor(folder).transform(images())
    with pytest.raises(DataError, match="2 channels"):
        auxmae.FeatureExtractor(folder).fit(images(channels=2))
    with pytest.raises(ValueError, match="fitted with 3"):
        auxmae.FeatureExtractor(folder).fit(images()).transform(images(channels=2))
    ragged = [images()[0], images()[1, :, :5, :7]]
    for several in (ragged, np.array([*ragged, None], dtype=object)[:2]):
        with pytest.raises(ValueError, match=r"images of one size, not of 2, such as 5×7 and "):
            auxmae.FeatureExtractor(folder).fit(several)
    for wrong in (images()[0], np.zeros((0, 3, 8, 8)), np.full((1, 3, 8, 8), "x")):
        with pytest.raises(ValueError, match="X must be"):
            auxmae.FeatureExtractor(folder).fit(wrong)
    with pytest.raises(AuxMAEError, match="unknown pooling"):
        auxmae.FeatureExtractor(folder, pool="sum").fit(images())


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_said(folder, device):
    with pytest.raises(SettingsError, match=device):
        auxmae.FeatureExtractor(folder, device=device).fit(images())


def test_images_of_any_type_give_the_models_features(folder):
    model = auxmae.AuxMAE.from_pretrained(folder)
    x = torch.from_numpy(images().round())
    for given in (x, x.half(), x.to(torch.uint8)):
        for features in (model.forward_features, model.dense_features):
            torch.testing.assert_close(features(given), features(x.float()))
    assert model.to(torch.float64).forward_features(x.float()).dtype == torch.float64


def test_the_callers_model_stays_where_it_is(folder, monkeypatch):
    model = auxmae.AuxMAE.from_pretrained(folder)
    # A second device on every machine; what is computed on it cannot be looked at.
    monkeypatch.setattr("auxmae.extractor.select_device", torch.device)
    with pytest.raises(RuntimeError):
        auxmae.FeatureExtractor(model, device="meta").fit(images())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_the_callers_model_learns_afterwards():
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1}
    model = auxmae.AuxMAE(NAMES, channel_embedding="wavelength", wavelengths=[450, 560, 665], **sizes)
    auxmae.FeatureExtractor(model).fit_transform(images())
    assert model.training
    model(torch.from_numpy(images())).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("nodata", "stored", "others"),
    [
        (1e20, (np.float32(1e20), np.float64(1e20), np.float64(np.float32(1e20))), (np.float64(1e19),)),
        (0.1, (np.float32(0.1), np.float64(0.1), np.float64(np.float32(0.1))), (np.float64(0.1) + 1e-12,)),
        # Lowest float64, which float32 does not hold.
        (-1.7976931348623157e308, (np.float64(-1.7976931348623157e308),), (np.float64(-5.0),)),
        # A whole number that float32 does not hold, beside its neighbour, which it does.
        (2**24 + 1, (np.int32(2**24 + 1), np.float64(2**24 + 1)), (np.int32(2**24),)),
    ],
)
def test_nodata_is_found_in_pixels_of_any_type(folder, tmp_path, nodata, stored, others):
    run = create_run(str(tmp_path / "run"), SettingsTree.model_validate({"data": {"nodata": nodata}}))
    auxmae.AuxMAE.from_pretrained(folder).save_pretrained(run.path / "checkpoints" / "last")
    extractor = auxmae.FeatureExtractor(run.path)
    x = images().round()
    missing = x.copy()
    missing[0, 1, 2:4, 3] = np.nan
    expected = extractor.fit_transform(missing)
    for value in (*stored, *others):
        given = x.astype(value.dtype)
        given[0, 1, 2:4, 3] = value
        alike = np.allclose(extractor.transform(given), expected, rtol=1e-5, atol=1e-5)
        assert alike == any(value is each for each in stored), repr(value)


class AsTable(auxmae.FeatureExtractor):
    """Says that it takes tables: scikit-learn leaves out nearly all checks of what does not."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def test_the_applicable_checks_of_scikit_learn_pass(folder):
    results = check_estimator(AsTable(folder), on_fail=None, on_skip=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    assert {"check_estimator_cloneable", "check_no_attributes_set_in_init", "check_get_params_invariance"} <= passed
    # The others fail for one reason only: they draw tables, which are no images.
    for name, error in failed.items():
        reasons = [error, error.__cause__, error.__context__]
        assert any("X must be images" in str(reason) for reason in reasons), f"{name}: {error!r}"


def test_features_of_a_run_are_those_of_embed(folder, tmp_path, monkeypatch):
    """Of images that are larger than the crops of training, with the run's own pooling."""
    x = images(5, side=20).astype(np.float32)
    x[1, :, :8, :8] = np.nan
    x[2, 1, 3:9] = -9999
    (tmp_path / "data").mkdir()
    for number, image in enumerate(x):
        np.save(tmp_path / "data" / f"{number}.npy", image)
    run = create_run(
        str(tmp_path / "runs" / "1"),
        SettingsTree.model_validate({"data": {"nodata": -9999}, "eval": {"pool": "moments+embedding"}}),
    )
    model = auxmae.AuxMAE.from_pretrained(folder)
    model.save_pretrained(run.path / "checkpoints" / "last")
    options = ReadOptions(nodata=-9999)
    collection = open_collection(str(tmp_path / "data"), channels=NAMES, layout="images", options=options)
    embed(model.eval(), collection, tmp_path / "out.npy", pool="moments+embedding", batch_size=3)
    found = auxmae.FeatureExtractor(run.path, batch_size=2).fit_transform(x)
    np.testing.assert_allclose(found, np.load(tmp_path / "out.npy"), rtol=1e-4, atol=1e-5)
    assert found.shape[1] == auxmae.FeatureExtractor(folder).fit_transform(x).shape[1] * 2
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(auxmae.FeatureExtractor("last", batch_size=2).fit_transform(x), found)


def test_eval_embed_and_the_transformer_agree_on_images_of_several_windows(folder, tmp_path):
    """One window is not valid at all, others are in part; eval's batches end within an image."""
    x = images(4, side=24).astype(np.float32)[..., :16]
    x[0, :, :8, :8] = np.nan
    x[1, 2, 5:20, 3:9] = np.nan
    for number, image in enumerate(x):
        (tmp_path / "data" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "data" / f"class{number % 2}" / f"{number}.npy", image)
    collection = open_collection(str(tmp_path / "data"), channels=NAMES, layout="images")
    x = x[[0, 2, 1, 3]]  # as the collection has them: class by class
    model = auxmae.AuxMAE.from_pretrained(folder).eval()
    embed(model, collection, tmp_path / "out.npy", pool="moments", batch_size=7)
    part = Part("test", np.arange(len(x)), np.zeros((0, 5), dtype=np.int64))
    dataset = ImageDataset(collection, part, image_size=8, scaling=Scaling.from_dict(model.scaling))
    assert len(dataset) == 6 * len(x)
    of_eval = extract_features(model, Loader(dataset, 4, shuffle=False), pool="moments", device="cpu").x
    of_transformer = auxmae.FeatureExtractor(folder, pool="moments", batch_size=3).fit_transform(x)
    np.testing.assert_allclose(of_eval, np.load(tmp_path / "out.npy"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_transformer, np.load(tmp_path / "out.npy"), rtol=1e-5, atol=1e-6)
    assert len({row.tobytes() for row in of_eval}) == len(x)


def test_features_that_are_not_finite_are_an_error_that_says_which(folder):
    x = images().astype(np.float32)
    extractor = auxmae.FeatureExtractor(folder, batch_size=4, pool="mean").fit(x)
    x[5, 1, 2, 3] = 3e38
    with pytest.raises(ValueError, match=r"1 of 9 images are not finite, the first X\[5\]"):
        extractor.transform(x)
