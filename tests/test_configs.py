"""Every config that comes with the project loads, says how to run it, and is short."""

import tomllib

import pytest

from mtattn.config import bundled_configs, load_config

CONFIGS = bundled_configs()


def test_the_zero_config_default_is_there():
    assert "toy" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_config_loads_by_name_and_by_path(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    assert config == load_config(str(CONFIGS[name]))
    assert config.data.train
    assert config.data.test


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_short(name):
    text = CONFIGS[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert tomllib.loads(text)
