"""Configuration: what is wrong is named by file, path, value and nearest match; what is right survives a round trip."""

import tomllib
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtattn.config import Config, TrainConfig, bundled_configs, load_config, parse_config
from mtattn.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.d_modle=5", "model.d_modle is not a setting; did you mean 'd_model'? (known: preset, d_model,"),
        ("model.d-model=5", "model.d-model is not a setting; did you mean 'd_model'?"),
        ("modle.d_model=5", "modle is not a setting; did you mean 'model'? (known: data, filter,"),
        ("data.train={path='a', targt='b'}", "data.train.targt is not a setting; did you mean 'target'?"),
        ("data.train=['a', {path='b', fmt='c'}]", "data.train.1.fmt is not a setting; did you mean 'format'?"),
        ("model.position.bas=5", "model.position.bas is not a setting; did you mean 'base'?"),
        ("data.train=5", "data.train = 5: it should be a valid string or a table or a valid array"),
        ("model=5", "model = 5: it should be a table"),
        ("train.max_steps=10.5", "train.max_steps = 10.5: it should be a valid integer"),
        ("train.max_steps=true", "train.max_steps = True: it should be a valid integer"),
        ("train.max_steps=", "train.max_steps = '': it should be a valid integer"),
        ("model.bias=1", "model.bias = 1: it should be a valid boolean"),
        ("optim.kind=adam", "optim.kind = 'adam': it should be 'muon' or 'adamw'"),
        ("model.preset=tinny", "model.preset is 'tinny'; did you mean 'tiny'? (known: tiny, vaswani)"),
        ("model.preset=5", "model.preset = 5: it should be a valid string"),
        ("model.preset=[1]", "model.preset = [1]: it should be a valid string"),
        ("train.seed=-1", "train: seed is -1; allowed: 0 or more"),
        ("train.max_minutes=nan", "train: max_minutes is nan; allowed: 0 or more"),
        ("train.ema=1.0", "train: ema is 1.0; allowed: 0 <= ema < 1"),
        ("train.max_epochs=0", "train: max_steps, max_epochs and max_minutes are all 0; give at least one"),
        ("model.num_heads=3", "model: d_model 256 is not a multiple of num_heads 3"),
        ("model.attention=banded", "model: attention is 'banded'; allowed: auto, reference, sdpa, chunked, flex"),
        ("model={attention='chunked', attention_dropout=0.1}", "model: attention 'chunked' has no dropout; set"),
        ("model={attention='sdpa', score='additive'}", "model: score 'additive' is computed in one way alone"),
        ("model.position.kind=rotray", "model.position: kind is 'rotray'; allowed: none, sinusoidal"),
        ("decode.nbest=9", "decode: nbest = 9: it must be from 1 to beam_size (5)"),
        ("tokenizer.vocab_size=100", "tokenizer: vocab_size is 100; allowed: more than 260"),
        ("train.max_epochs=2026-01-01", "train.max_epochs = '2026-01-01': it should be a valid integer"),
    ],
)
def test_what_is_wrong_is_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert str(caught.value).startswith("the defaults, with overrides: ")
    assert "\n" not in str(caught.value)


def test_rdrop_needs_some_dropout():
    none = ["loss.rdrop=4", "model.dropout=0", "model.inner_dropout=0"]
    with pytest.raises(ConfigError, match="without any they are the same"):
        load_config(None, none)
    assert load_config(None, [*none, "model.attention_dropout=0.1"]).loss.rdrop == 4


def test_a_file_is_named_and_every_fault_is_listed(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nd_model = 'big'\n[train]\nmax_step = 5\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert "did you mean 'max_steps'" in lines[1]


def test_settings_of_two_sections_that_do_not_fit():
    learned = ["model.position.kind=learned", "model.position.max_len=300"]
    with pytest.raises(
        ConfigError, match=r"the defaults, with overrides: model.position.max_len is 300, .* may have 522 pieces"
    ):
        load_config(None, learned)
    assert load_config(None, [*learned, "filter.max_len=100"]).model.position.max_len == 300


@pytest.mark.parametrize("content", [b"[model", b"d = 1\nd = 2", b"\xff\xfe"])
def test_a_file_that_is_no_toml(tmp_path, content):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.toml: not valid TOML"):
        load_config(str(path))


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="no config file or bundled config named 'tuy'; did you mean 'toy'"):
        load_config("tuy")


def test_a_directory_does_not_hide_a_bundled_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    assert load_config("toy") == load_config(str(bundled_configs()["toy"]))


# --set


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.max_epochs=5", 5),
        (" train.max_epochs = 5 ", 5),
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=1", 1.0),
        ("train.precision=float32", "float32"),
        ('train.precision="float32"', "float32"),
        ("model.bias=true", True),
        ("optim.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data.train=a/train.{en,de}", "a/train.{en,de}"),
        ("data.train=a = b", "a = b"),
        ("data.train=", ""),
    ],
)
def test_set_takes_toml_values_and_bare_words(override, value):
    section, key = override.partition("=")[0].strip().split(".")
    found = getattr(getattr(load_config(None, [override]), section), key)
    assert (found, type(found)) == (value, type(value))


def test_set_goes_over_the_file_and_the_last_one_wins(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("[train]\nmax_epochs = 7\nseed = 3\n", encoding="utf-8")
    config = load_config(str(path), ["train.max_epochs=8", "train.max_epochs=9"])
    assert (config.train.max_epochs, config.train.seed) == (9, 3)


def test_set_reaches_into_tables():
    config = load_config(None, ["model.position={kind = 't5', num_buckets = 16}", "model.position.max_distance=99"])
    assert (config.model.position.kind, config.model.position.num_buckets) == ("t5", 16)
    assert config.model.position.max_distance == 99


@pytest.mark.parametrize("override", ["train.max_epochs", "=5", " =5", ""])
def test_set_without_key_or_value(override):
    with pytest.raises(ConfigError, match=r"write it as section\.key=value"):
        load_config(None, [override])


def test_set_below_a_value():
    with pytest.raises(ConfigError, match="d_model is a value, not a section"):
        load_config(None, ["model.d_model=8", "model.d_model.x=8"])


# Presets


def test_preset_stands_under_what_the_section_says():
    config = load_config(None, ["model.preset=vaswani", "model.d_ff=1024", "model.position.max_len=2000"]).model
    assert (config.d_model, config.d_ff, config.norm_position) == (512, 1024, "post")
    assert (config.position.kind, config.position.max_len) == ("sinusoidal", 2000)
    assert load_config(None, ["model.preset=vaswani", "model.position.kind=rotary"]).model.position.kind == "rotary"


# The round trip


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.preset=tiny", "model.d_model=64"],
        ["model.preset=vaswani"],
        ["model.position.scaling=ntk", "model.position.factor=2"],
        ["data.train=['a.tsv', {path = 'b.csv', columns = ['x', 3]}]", "data.dev=hf:a/b@dev"],
        ["optim.betas=[0.8, 0.9]", "train.max_minutes=0.5", "decode.search=sample", "decode.nbest=7"],
        ["data.folder='C:\\a \"b\" é\\U0001F600\u2028'"],
    ],
)
def test_resolved_config_loads_to_an_equal_one(overrides, tmp_path):
    config = load_config(None, overrides)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    again = load_config(str(path))
    assert again == config
    assert again.to_toml() == config.to_toml()


@given(
    st.integers(0, 2**62),
    st.floats(0, 0.999),
    st.floats(1e-300, 1e300),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_value_survives_toml(seed, ema, lr, folder):
    config = parse_config(
        {"train": {"seed": seed, "ema": ema}, "optim": {"lr": lr}, "data": {"folder": folder}}, "test"
    )
    assert parse_config(tomllib.loads(config.to_toml()), "again") == config
    assert (config.train.seed, config.train.ema, config.optim.lr, config.data.folder) == (seed, ema, lr, folder)


def test_toml_holds_every_setting():
    table = tomllib.loads(Config().to_toml())
    for section, values in asdict(Config()).items():
        assert set(table[section]) == {key for key, value in values.items() if value is not None}


def test_configs_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config().train.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize("name", ["batch_tokens", "accumulate", "log_every", "hold_out", "valid_sentences"])
def test_train_config_says_what_is_allowed(name):
    with pytest.raises(ValueError, match=f"{name} is 0; allowed: 1 or more"):
        TrainConfig(**{name: 0})
