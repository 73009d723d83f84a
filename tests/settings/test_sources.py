"""Settings: precedence, origins, and one clear line for every fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.errors import SettingsError
from auxmae.settings import InvalidSettingsError, load_settings
from auxmae.settings.schema import SettingsTree


def write(folder: Path, text: str) -> Path:
    path = folder / "auxmae.toml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(folder: Path, text: str | None = None, **sources: object) -> str:
    """The one line that the sources' fault is told in."""
    if text is not None:
        write(folder, text)
    sources.setdefault("environ", {})
    with pytest.raises(SettingsError) as caught:
        load_settings(cwd=folder, **sources)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in line
    return line


def test_without_any_source_the_preset_and_the_defaults_hold(tmp_path):
    loaded = load_settings(cwd=tmp_path, environ={})
    assert loaded.file is None
    assert loaded.settings.model.preset == "tiny"
    assert loaded.settings.train.epochs == 40
    assert loaded.origins["train.epochs"] == "preset 'tiny'"
    assert loaded.origins["train.weight_decay"] == "default"


def test_every_source_stands_over_those_below(tmp_path):
    file = '[model]\npreset = "base"\n\n[train]\nbatch_size = 7\n'
    environ = {"AUXMAE_TRAIN__BATCH_SIZE": "6"}
    expected = [
        ({}, "", 4, "preset 'tiny'"),
        ({}, '[model]\npreset = "base"\n', 256, "preset 'base'"),
        ({}, file, 7, "auxmae.toml:5"),
        ({"environ": environ}, file, 6, "AUXMAE_TRAIN__BATCH_SIZE"),
        ({"environ": environ, "options": {"train.batch_size": 5}}, file, 5, "--batch-size"),
        (
            {"environ": environ, "options": {"train.batch_size": 5}, "overrides": ["train.batch_size=3"]},
            file,
            3,
            "--set",
        ),
    ]
    for sources, text, value, origin in expected:
        write(tmp_path, text)
        loaded = load_settings(cwd=tmp_path, **{"environ": {}, **sources})
        assert (loaded.settings.train.batch_size, loaded.origins["train.batch_size"]) == (value, origin)
        assert loaded.file == tmp_path / "auxmae.toml"


@pytest.mark.parametrize(
    ("sources", "minutes", "origin"),
    [
        ({}, 1.5, "preset 'tiny'"),
        # What the starter file holds sets no length.
        ({"overrides": ["train.max_steps=0"]}, 1.5, "preset 'tiny'"),
        ({"options": {"train.max_steps": 10_000}}, 0, "default"),
        ({"environ": {"AUXMAE_TRAIN__EPOCHS": "40"}}, 0, "default"),
        ({"tables": {"train": {"epochs": 40, "max_minutes": 3}}}, 3, ""),
    ],
)
def test_a_presets_time_limit_cuts_no_length_short_that_was_asked_for(tmp_path, sources, minutes, origin):
    loaded = load_settings(cwd=tmp_path, **{"environ": {}, **sources})
    assert (loaded.settings.train.max_minutes, loaded.origins["train.max_minutes"]) == (minutes, origin)


def test_the_preset_is_chosen_by_the_highest_source(tmp_path):
    write(tmp_path, '[model]\npreset = "base"\n')
    environ = {"AUXMAE_MODEL__PRESET": "large"}
    assert load_settings(cwd=tmp_path, environ={}).settings.model.width == 512
    assert load_settings(cwd=tmp_path, environ=environ).settings.model.width == 768
    assert load_settings(cwd=tmp_path, environ=environ, overrides=["model.preset=small"]).settings.model.width == 256


def test_options_not_given_and_named_options(tmp_path):
    options = {"train.max_steps": None, "data.source": Path("images"), "run.folder": "2024"}
    loaded = load_settings(cwd=tmp_path, environ={}, options=options)
    assert loaded.origins["train.max_steps"] == "default"
    assert (loaded.settings.data.source, loaded.origins["data.source"]) == ("images", "--data")
    assert (loaded.settings.run.folder, loaded.origins["run.folder"]) == ("2024", "--output")


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("data.key=123", "data", "key", "123"),
        ("run.folder=2024-01-02", "run", "folder", "2024-01-02"),
        ('data.source="a b"', "data", "source", "a b"),
        ("data.source=a=b#c", "data", "source", "a=b#c"),
        ("data.source=1\ny = 2", "data", "source", "1\ny = 2"),
        (" train.epochs = 3 ", "train", "epochs", 3),
        ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3),
        ("train.compile=true", "train", "compile", True),
        ('data.channels=["B02", "B03"]', "data", "channels", ("B02", "B03")),
        ("model.channel_groups=auto", "model", "channel_groups", "auto"),
        ('model.channel_groups=[["a"], ["b", "c"]]', "model", "channel_groups", (("a",), ("b", "c"))),
        ("train.betas=[0.5, 0.9]", "train", "betas", (0.5, 0.9)),
        ("loss.kind=mse", "loss", "kind", "mse"),
        ("data.nodata=-9999", "data", "nodata", -9999.0),
        ("data.nodata=nan", "data", "nodata", "nan"),
        ("masking.mixture={shared = 1}", "masking", "mixture", {"shared": 1.0}),
    ],
)
def test_values_on_the_command_line_and_in_the_environment(tmp_path, override, table, key, value):
    loaded = load_settings(cwd=tmp_path, environ={}, overrides=[override])
    assert getattr(getattr(loaded.settings, table), key) == value
    name, _, text = override.partition("=")
    variable = "AUXMAE_" + name.strip().replace(".", "__").upper()
    loaded = load_settings(cwd=tmp_path, environ={variable: text})
    assert getattr(getattr(loaded.settings, table), key) == value
    assert loaded.origins[name.strip()] == variable


def test_a_mixture_is_taken_whole_from_the_highest_source(tmp_path):
    write(tmp_path, "[masking.mixture]\nchannel = 1\nblock = 2\n")
    assert load_settings(cwd=tmp_path, environ={}).settings.masking.mixture == {"channel": 1, "block": 2}
    overrides = ["masking.mixture.shared=1", "masking.mixture.block=3"]
    loaded = load_settings(cwd=tmp_path, environ={}, overrides=overrides)
    assert loaded.settings.masking.mixture == {"shared": 1, "block": 3}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        # unknown keys and tables
        ("[train]\nepochs = 3\nepoch = 3\n", ["auxmae.toml:3: train.epoch:", "did you mean 'train.epochs'?"]),
        ("\nlearning_rate = 1\n", ["auxmae.toml:2: learning_rate:", "did you mean 'train.learning_rate'?"]),
        ("[model]\nbatch_size = 1\n", ["auxmae.toml:2: model.batch_size:", "'train.batch_size'"]),
        ("[masking]\nmask_ratio = 0.5\n", ["auxmae.toml:2: masking.mask_ratio:", "'masking.ratio'"]),
        ("# c\n[trian]\nepochs = 1\n", ["auxmae.toml:2: trian:", "did you mean 'train'?"]),
        ("[qqq]\n", ["auxmae.toml:1: qqq:", "expected one of data, scaling"]),
        ("[loss]\nqqq = 1\n", ["auxmae.toml:2: loss.qqq:", "expected one of kind, normalize"]),
        # a table where a value is due, and the reverse
        ("train = 3\n", ["auxmae.toml:1: train: 3 is not a table", "train.epochs"]),
        ("[[train]]\nepochs = 1\n", ["auxmae.toml:1: train:", "not a table"]),
        ("[train.epochs]\nx = 1\n", ["auxmae.toml:1: train.epochs:", "expected an integer ≥ 1 and ≤ 1000000"]),
        # types, bounds, choices
        ('[train]\nepochs = "many"\n', ["auxmae.toml:2: train.epochs: 'many'", "expected an integer ≥ 1"]),
        ("[train]\nepochs = true\n", ["auxmae.toml:2: train.epochs: true", "expected an integer"]),
        ("[train]\nepochs = 1.5\n", ["auxmae.toml:2: train.epochs: 1.5", "expected an integer"]),
        ("[train]\nepochs = 0\n", ["auxmae.toml:2: train.epochs: 0", "≥ 1"]),
        ("[train]\nlearning_rate = nan\n", ["auxmae.toml:2: train.learning_rate: nan", "> 0"]),
        ("[train]\nmax_minutes = inf\n", ["auxmae.toml:2: train.max_minutes: inf", "≤ 1000000"]),
        ("[train]\ncompile = 1\n", ["auxmae.toml:2: train.compile: 1", "true or false"]),
        ('[train]\ncompile = "false"\n', ["train.compile: 'false' is wrong", "did you mean false, without quotes?"]),
        ("[train]\nepochs = 2024-01-01\n", ["auxmae.toml:2: train.epochs: 2024-01-01", "an integer"]),
        ("[data]\nsamples_per_epoch = 99999999999999999999\n", ["auxmae.toml:2: data.samples_per_epoch:", "≤ 100000000"]),
        ('[train]\nepochs = "3"\n', ["auxmae.toml:2: train.epochs: '3'", "; did you mean 3?"]),
        ('[data]\nchannels = "B1, B2"\n', ["a list, each item text", '; did you mean ["B1", "B2"]?']),
        ('[loss]\nkind = "L2"\n', ["auxmae.toml:2: loss.kind: 'L2'", "one of 'l1', 'mse', 'smooth_l1'"]),
        ('[loss]\nkind = "smoothl1"\n', ["did you mean 'smooth_l1'?"]),
        ("[masking]\nratio = 1.0\n", ["auxmae.toml:2: masking.ratio: 1.0", "> 0 and < 1"]),
        ("[eval]\nbootstrap = 99\n", ["auxmae.toml:2: eval.bootstrap: 99 is wrong, expected an integer ≥ 100"]),
        ('[data]\naxes = "XYZ"\n', ["auxmae.toml:2: data.axes: 'XYZ'"]),
        ('[data]\nwavelengths = [\n  1,\n  "b",\n]\n', ["auxmae.toml:2: data.wavelengths: item 2, 'b'", "> 0"]),
        ("[data]\nsize = [1]\n", ["auxmae.toml:2: data.size: [1]", "a list of 2"]),
        ("data = {\n  source = 'x',\n  labels = 3,\n}\n", ["auxmae.toml:3: data.labels: 3", "expected non-empty text"]),
        ("[masking.mixture]\nshraed = 1\n", ["auxmae.toml:1: masking.mixture:", "'shraed'", "shared"]),
        ("[masking.mixture]\nshared = nan\n", ["auxmae.toml:1: masking.mixture:", "nan"]),
        # contradictions
        ("[model]\npatch_size = 8\nimage_size = 4\n", ["auxmae.toml:3: model.image_size:", "patch_size (8 px)"]),
        ("[model]\nheads = 5\n", ["auxmae.toml:2: model.heads:", "not divisible by heads (5)"]),
        ('[data]\nsplit = "group"\n', ["auxmae.toml:2: data.split:", "group_pattern"]),
        ('[data]\ngroup_pattern = "("\n', ["auxmae.toml:2: data.group_pattern:", "regular expression"]),
        ('[data]\nchannels = ["a", "a"]\n', ["auxmae.toml:2: data.channels:", "twice"]),
        (
            '[scaling]\nmethod = "standard"\n[model]\noutput_activation = "sigmoid"\n',
            ["auxmae.toml:4: model.output_activation:", "scaling.method"],
        ),
        ('[scaling]\nmethod = "standard"\n[model]\npreset = "reference"\n', ["auxmae.toml:2: scaling.method:"]),
        # not TOML
        ("[train]\nepochs = = 4\n", ["auxmae.toml:2: not valid TOML:", "column"]),
        ("[train]\nepochs = 4\nepochs = 5\n", ["auxmae.toml:3: not valid TOML: epochs is set twice"]),
        ("[train\n", ["auxmae.toml:1: not valid TOML:"]),
        ("[loss]\nkind = mse\n", ["auxmae.toml:2:", "did you mean 'kind = \"mse\"'?"]),
        ("[train]\ncompile = True\n", ["auxmae.toml:2:", "did you mean 'compile = true'?"]),
        ("x = " + "[" * 5000, ["auxmae.toml", "not valid TOML"]),
        ("x = " + "9" * 5000, ["auxmae.toml", "not valid TOML"]),
    ],
)
def test_a_fault_in_the_file_is_one_line_with_its_place(tmp_path, text, parts):
    line = fault(tmp_path, text)
    assert all(part in line for part in parts), line
    assert line.startswith("auxmae.toml")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("epochs", ["'epochs' is no setting", "TABLE.KEY=VALUE"]),
        ("=3", ["'=3' is no setting"]),
        ("train..epochs=3", ["is no setting"]),
        ("train=3", ["train: 3 is not a table"]),
        ("train.epoch=3", ["train.epoch:", "'train.epochs'"]),
        ("lr=1", ["lr:", "'train.learning_rate'"]),
        ("trian.epochs=1", ["unknown table 'trian'", "'train.epochs'"]),
        ("train.epochs.x=1", ["train.epochs is no table"]),
        ("train.epochs=x", ["train.epochs: 'x'", "an integer"]),
        ("train.epochs=", ["train.epochs: ''", "an integer"]),
        ("train.compile=True", ["did you mean 'true'?"]),
        ("train.learning_rate=.5", ["train.learning_rate: '.5'", "did you mean '0.5'?"]),
        ("train.epochs=007", ["did you mean '7'?"]),
        ('train.epochs="3"', ["train.epochs: '3'", "did you mean 3, without the inner quotes?"]),
        ("data.channels=B01,B 2", ["""; did you mean '["B01", "B 2"]'?"""]),
        # as a shell leaves it of ["B01", "B02"]
        ("data.channels=[B01, B02]", ["""; did you mean '["B01", "B02"]'?"""]),
        ("train.betas=0.9,.95", ["did you mean '[0.9, 0.95]'?"]),
        ("model.width=97", ["model.width: width (97) is not divisible by heads (4)"]),
        ("model.preset=tyni", ["model.preset: 'tyni'", "did you mean 'tiny'?"]),
        ("a\nb.c=1", ["unknown table"]),
    ],
)
def test_a_fault_on_the_command_line_names_the_option(tmp_path, override, parts):
    line = fault(tmp_path, overrides=[override])
    assert all(part in line for part in parts), line
    assert line.startswith("--set: ")


@pytest.mark.parametrize(
    "override",
    ["train.epochs=x", "train.epochs=3.5x", "train.epochs=", "data.channels=", "data.channels=a,,b", "data.nodata=inf_",
     "data.ignored_labels=0,x", "train.betas=.9", "data.size=100,100,3", "model.channel_groups=a,b", "masking.mixture=shared"],
)  # fmt: skip
def test_no_value_is_proposed_where_none_was_meant(tmp_path, override):
    assert "did you mean" not in fault(tmp_path, overrides=[override])


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("AUXMAE_TRAIN_EPOCHS", "3", ["unknown variable", "'AUXMAE_TRAIN__EPOCHS'"]),
        ("AUXMAE_MODLE__WIDTH", "3", ["unknown variable", "'AUXMAE_MODEL__WIDTH'"]),
        ("AUXMAE_TRAIN__LR", "3", ["'AUXMAE_TRAIN__LEARNING_RATE'"]),
        ("AUXMAE_KERNEL", "torch", ["'AUXMAE_KERNELS'"]),
        ("AUXMAE_", "", ["unknown variable"]),
        ("AUXMAE_TRAIN", "3", ["unknown variable"]),
        ("AUXMAE_TRAIN__EPOCHS", "many", ["train.epochs: 'many'", "an integer ≥ 1"]),
        ("auxmae_train__epochs", "0", ["train.epochs: 0"]),
    ],
)
def test_a_fault_in_the_environment_names_the_variable(tmp_path, variable, value, parts):
    line = fault(tmp_path, environ={variable: value, "PATH": "/bin", "AUXMAE_KERNELS": "x", "AUXMAE_TEST_DATA": "y"})
    assert all(part in line for part in parts), line
    assert line.startswith(f"{variable}: ")


def test_typed_options_are_named(tmp_path):
    assert fault(tmp_path, options={"train.max_steps": -1}).startswith("--max-steps: train.max_steps: -1 is wrong")
    assert fault(tmp_path, options={"data.source": ""}).startswith("--data: data.source: '' is wrong")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"trian": {}}, "trian: unknown table 'trian'; did you mean 'train'?"),
        ({"trian": {"max_steps": 3}}, "trian.max_steps: unknown table 'trian'; did you mean 'train.max_steps'?"),
        ({"trian": 5}, "trian: unknown setting outside a table, expected TABLE.KEY; did you mean 'train'?"),
        (
            {"train.max_steps": 3},
            'train.max_steps: unknown setting outside a table, expected {"train": {"max_steps": 3}}',
        ),
        (
            {"train.max_step": True},
            'train.max_step: unknown setting outside a table, expected {"train": {"max_steps": True}}',
        ),
        ({"data.channels": ["a" * 80]}, 'data.channels: unknown setting outside a table, expected {"data": {"channels": …}}'),
        (
            {"masking.mixture": {"shared": 1}},
            'masking.mixture: unknown setting outside a table, expected {"masking": {"mixture": {\'shared\': 1}}}',
        ),
        ({"train": 5}, "train: 5 is not a table, expected settings such as train."),
        ({"train": {"max_step": None}}, "train.max_step: unknown setting; did you mean 'train.max_steps'?"),
        ({"train": {"max_steps": -1}}, "train.max_steps: -1 is wrong, expected an integer ≥ 0"),
        ({"data": {"source": ""}}, "data.source: '' is wrong"),
        ({"model": {"width": 97}}, "model.width: width (97) is not divisible by heads (4)"),
        ({5: {"x": 1}}, "5.x: unknown table '5'"),
        ({"train": {"epochs": 0, "seed": "x"}}, "train.epochs: 0 is wrong"),
    ],
)
def test_a_fault_of_tables_from_python_names_the_setting(tmp_path, tables, said):
    line = fault(tmp_path, tables=tables)
    assert line.startswith(said)
    assert "--" not in line


def test_a_table_and_its_setting_in_one_quoted_name_of_a_file(tmp_path):
    (tmp_path / "auxmae.toml").write_text('"train.max_steps" = 3\n')
    said = "auxmae.toml:1: train.max_steps: unknown setting outside a table, expected train.max_steps without quotes"
    assert fault(tmp_path) == said


def test_tables_from_python_stand_over_the_environment(tmp_path):
    given = {"train": {"epochs": 3, "max_steps": None}, "masking": {"mixture": {"shared": 1}}, "run": {}}
    environ = {"AUXMAE_TRAIN__EPOCHS": "4", "AUXMAE_TRAIN__MAX_STEPS": "5"}
    settings = load_settings(cwd=tmp_path, tables=given, environ=environ).settings
    assert (settings.train.epochs, settings.train.max_steps) == (3, 5)
    assert settings.masking.mixture == {"shared": 1}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("data.source", "lat\udce9dir", r"'lat\udce9dir'"),
        ("data.labels", "lat\udce9:x", r"'lat\udce9:x'"),
        ("data.channels", "['a', 'lat\udce9']", r"['a', 'lat\udce9']"),
    ],
)
def test_a_name_in_other_bytes_than_utf8_is_called_so(tmp_path, key, value, shown):
    line = fault(tmp_path, overrides=[f"{key}={value}"])
    assert line == f"--set: {key}: {shown} is not valid UTF-8 text, expected a name that is"


def test_a_contradiction_blames_the_highest_source(tmp_path):
    line = fault(tmp_path, "[model]\nimage_size = 16\n", environ={"AUXMAE_MODEL__PATCH_SIZE": "32"})
    assert line.startswith("AUXMAE_MODEL__PATCH_SIZE: model.patch_size: image_size (16 px) is smaller")


def test_several_faults_are_counted_and_all_kept_in_order(tmp_path):
    write(tmp_path, '[train]\nepochs = "x"\n[loss]\nkin = 1\n')
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings(cwd=tmp_path, environ={"AUXMAE_FOO": "1"}, overrides=["masking.ratio=2"])
    starts = [line.split(": ")[0] for line in caught.value.faults]
    assert starts == ["auxmae.toml:2", "auxmae.toml:4", "AUXMAE_FOO", "--set"]
    assert str(caught.value).startswith("auxmae.toml:2: train.epochs:")
    assert "3 more faults" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    assert "settings.toml: no such file" in fault(tmp_path, config=Path("settings.toml"))
    assert "is a folder" in fault(tmp_path, config=tmp_path)
    (tmp_path / "auxmae.toml").write_bytes(b"[train]\n# caf\xe9\n")
    assert fault(tmp_path).startswith("auxmae.toml:2: not UTF-8")
    (tmp_path / "auxmae.toml").unlink()
    (tmp_path / "auxmae.toml").symlink_to(tmp_path / "gone")
    assert "no such file" in fault(tmp_path)


def test_config_is_found_from_the_working_directory_and_named_as_given(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nepochs = 3\r\n")
    loaded = load_settings(Path("sub/a.toml"), cwd=tmp_path, environ={})
    assert loaded.settings.train.epochs == 3
    assert loaded.origins["train.epochs"] == "sub/a.toml:2"


def test_lines_of_keys_in_every_spelling(tmp_path):
    text = (
        "train.epochs = 5 # x\n"
        'data.channels = [ # ]\n  "a", # "]"\n\n  "b",\n]\n'
        'data.source = """\nx = 1\n"""\n'
        '"loss" . "kind" = "mse"\n'
        "model = { preset = 'small',\n  width = 64 }\n"
        "[scaling]\n  low   =  2\n"
        "[masking.mixture]\nshared = 1\n"
    )
    write(tmp_path, text)
    origins = load_settings(cwd=tmp_path, environ={}).origins
    lines = {key: int(origin.rpartition(":")[2]) for key, origin in origins.items() if origin.startswith("auxmae")}
    assert lines == {
        "train.epochs": 1,
        "data.channels": 2,
        "data.source": 7,
        "loss.kind": 10,
        "model.preset": 11,
        "model.width": 12,
        "scaling.low": 14,
        "masking.mixture": 15,
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [f"{name}.{key}" for name, table in SettingsTree() for key in type(table).model_fields]


@settings(deadline=None, max_examples=200)
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_is_taken_or_refused_in_one_line(key, value):
    try:
        load_settings(environ={}, cwd=Path("/nowhere"), options={key: value})
    except SettingsError as error:
        line = str(error)
    else:
        return
    assert len(line.splitlines()) == 1
    assert key.split(".")[1] in line


@pytest.mark.parametrize("way", ["--set", "AUXMAE_DATA__CHANNEL_PATTERN"])
def test_a_pattern_in_double_quotes_is_no_pattern_with_quotes(way):
    def load(text):
        given = {"overrides": [f"data.channel_pattern={text}"]} if way == "--set" else {"environ": {way: text}}
        return load_settings(cwd=Path("/nowhere"), **{"environ": {}, **given}).settings.data.channel_pattern

    with pytest.raises(SettingsError, match=r"data\.channel_pattern: a backslash in double quotes") as told:
        load(r'"_(B\d+)\.tif$"')
    assert str(told.value).startswith(f"{way}: ")
    for text in (r"_(B\d+)\.tif$", r"'_(B\d+)\.tif$'", r'"_(B\\d+)\\.tif$"'):
        assert load(text) == r"_(B\d+)\.tif$"


@settings(deadline=None)
@given(text=st.text(max_size=40) | st.from_regex(r"[a-z]{1,6}(\.[a-z_]{0,6}){0,3}=.{0,6}", fullmatch=True))
def test_any_text_of_set_is_taken_or_refused_in_one_line(text):
    try:
        load_settings(environ={}, cwd=Path("/nowhere"), overrides=[text])
    except SettingsError as error:
        line = str(error)
    else:
        return
    assert line.startswith("--set: ")
    assert len(line.splitlines()) == 1


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60) | st.text("ab.=[]{}\"'\n #train", max_size=60).map(str.encode))
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    (folder / "auxmae.toml").write_bytes(content)
    try:
        load_settings(environ={}, cwd=folder)
    except SettingsError as error:
        line = str(error)
    else:
        return
    assert line.startswith("auxmae.toml")
    assert len(line.splitlines()) == 1


def test_no_heavy_import(repository):
    code = "import sys, auxmae.settings as s; s.load_settings(environ={}); "
    code += "print([name for name in ('torch', 'numpy', 'matplotlib', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
