"""Configs as JSON: what is saved is what is loaded, and what is none is refused by name."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import adaptive_kernels as ak
from adaptive_kernels.rules.origin import Origin
from adaptive_kernels.rules.presets import store as presets

ROOT = Path(ak.__file__).parent

PLAN = ak.Plan(
    "DDIMScheduler",
    (999.0, 666.6666666666666, 1 / 3),
    (True, False, True),
    ((1.0, 0.0, 0.0), (1.1, 0.0, 0.0), (1 / 3, -2e-17, 0.0)),
)
CONFIGS = [
    ak.AdaptiveConfig(),
    ak.AdaptiveConfig(threshold="auto", max_skip=6),
    ak.AdaptiveConfig.recommended(calls=np.float64(20)),
    ak.AdaptiveConfig.paper(threshold=math.inf),
    ak.AdaptiveConfig.paper(threshold=0.0, granularity="batch", warmup=5),
    ak.AdaptiveConfig(threshold=1 / 3, criterion="released", max_skip=1),
    ak.AdaptiveConfig.paper(threshold=np.float32(0.1), max_skip=np.int64(7), warmup=np.int32(3)),
    ak.AdaptiveConfig(criterion="defect", repair=False),
    ak.AdaptiveConfig(criterion="third_order", fill="linear", repair=True),
    ak.AdaptiveConfig(criterion="every(3)"),
    ak.AdaptiveConfig(criterion="never", max_skip=0),
    ak.AdaptiveConfig(origin=Origin("DDIMScheduler", 50, None, 7, (0.1, 1 / 3))),
    ak.AdaptiveConfig(criterion="plan", plan=PLAN),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.criterion)
def test_a_config_comes_back_as_it_was_saved(config, tmp_path):
    path = tmp_path / "config.json"
    ak.save_config(config, path)
    assert ak.load_config(path) == config
    assert ak.load_config(str(path)) == config
    assert [*tmp_path.iterdir()] == [path]
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no Infinity or NaN in it
    ak.save_config(ak.load_config(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    ak.save_config(CONFIGS[0], path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="config must be an AdaptiveConfig, got dict"):
        ak.save_config({}, path)

    def full(self, text):
        self.write_bytes(text[:10].encode())
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space left"):
            ak.save_config(CONFIGS[-1], path)
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    for wrong in (tmp_path / "folder", tmp_path / "nowhere" / "config.json", path / "config.json"):
        with pytest.raises(OSError):
            ak.save_config(CONFIGS[0], wrong)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "folder"]
    assert [*(tmp_path / "folder").iterdir()] == []


def saved(config=None, plan=None, **changed):
    """The JSON of the config with a plan, changed."""
    steps = {"timesteps": [999.0, 333.0], "refresh": [0], "weights": [[1, 0, 0], [1, 0, 0]]}
    plan = {"solver": "DDIMScheduler", **steps, **(plan or {})}
    config = {"criterion": "plan", "plan": plan, **(config or {})}
    return json.dumps({"format": 1, "config": config, **changed})


WRONG = [
    ("", "Expecting value"),
    ("{", "Expecting property name"),
    ("[]", "must be a saved AdaptiveConfig"),
    ("null", "must be a saved AdaptiveConfig"),
    ("[" * 100_000, "must be a saved AdaptiveConfig"),
    ('{"criterion": "plan"}', "without 'format'"),
    ('{"format": 1}', "without 'config'"),
    (saved(format=2), "format 2 is not 1"),
    (saved(config={"speed": 2}), "unexpected keyword argument 'speed'"),
    (saved(config={"threshold": "fast"}), "could not convert string to float"),
    (saved(config={"threshold": "nan"}), "threshold must be at least 0"),
    (saved(config={"threshold": [1]}), "must be a saved AdaptiveConfig"),
    (saved(config={"max_skip": 4.0}), "max_skip must be an int, got float"),
    (saved(config={"criterion": "always"}), "criterion must be 'third_order'"),
    (saved(config={"plan": None}), "plan must be given with criterion 'plan'"),
    (saved(config={"plan": [1]}), "must be a saved AdaptiveConfig"),
    (saved(config={"plan": {"solver": "DDIMScheduler"}}), "without 'timesteps'"),
    (saved(config={"origin": [1]}), "must be a saved AdaptiveConfig"),
    (saved(config={"origin": {"scheduler": 5}}), "origin.scheduler must be str or None, got 5"),
    (saved(config={"origin": {"model": "x"}}), "unexpected keyword argument 'model'"),
    (saved(plan={"solver": 5}), "plan.solver must be a str, got int"),
    (saved(plan={"timesteps": 5}), "must be a saved AdaptiveConfig"),
    (saved(plan={"timesteps": ["a", "b"]}), "plan.timesteps must hold numbers"),
    (saved(plan={"refresh": [0, 2]}), r"plan.refresh must be steps from 0 to 1, got \[0, 2\]"),
    (saved(plan={"refresh": [0, -1]}), "plan.refresh must be steps from 0 to 1"),
    (saved(plan={"refresh": [True]}), "plan.refresh must be steps from 0 to 1"),
    (saved(plan={"refresh": "0"}), "plan.refresh must be steps from 0 to 1, got '0'"),
    (saved(plan={"refresh": [1]}), "plan.refresh must call the network at the first step"),
    (saved(plan={"weights": [[1, 0, 0]]}), "must have an entry per timestep"),
    (saved(plan={"weights": [[1, 0], [1, 0]]}), "plan.weights must be three numbers"),
    (saved(plan={"weights": [[1, 0, 0], [1, 0, math.nan]]}), "plan.weights must be finite"),
    (saved(plan={"weights": [[1, 0, 0], [10**400, 0, 0]]}), "must be a saved AdaptiveConfig"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_a_file_of_something_else_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        ak.load_config(path)
    assert str(caught.value).startswith(f"path must be a saved AdaptiveConfig, got {path}")


def test_binary_files_folders_and_nothing_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="path must be a saved AdaptiveConfig, got "):
        ak.load_config(path)
    for missing in (tmp_path, tmp_path / "none.json", "no-such-preset", "", "../config"):
        with pytest.raises(FileNotFoundError, match="path must be a JSON file or one of the pres"):
            ak.load_config(missing)
    with pytest.raises(TypeError):
        ak.load_config(5)


def test_presets_are_the_files_of_the_folder_and_load_by_name(tmp_path, monkeypatch):
    assert presets.FOLDER == ROOT / "rules" / "presets" / "configs"
    for name in ak.presets():
        assert isinstance(ak.load_config(name), ak.AdaptiveConfig)
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "configs")
    assert ak.presets() == []
    (tmp_path / "configs").mkdir()
    for name, config in (("slow", CONFIGS[0]), ("fast", CONFIGS[-1])):
        ak.save_config(config, tmp_path / "configs" / f"{name}.json")
    (tmp_path / "configs" / "__init__.py").write_text("")
    assert ak.presets() == ["fast", "slow"]
    assert ak.load_config("fast") == CONFIGS[-1]
    with pytest.raises(FileNotFoundError, match="presets fast, slow, got 'fastest'"):
        ak.load_config("fastest")
    # A name is no path into the folder, and a file of the user's own comes first.
    for path in ("./fast", "configs/../fast"):
        with pytest.raises(FileNotFoundError):
            ak.load_config(path)
    monkeypatch.chdir(tmp_path)
    ak.save_config(CONFIGS[1], "fast")
    assert ak.load_config("fast") == CONFIGS[1]


def test_a_wheel_contains_the_presets():
    project = pytest.importorskip("tomllib", reason="needs Python 3.11").loads(
        (ROOT.parent / "pyproject.toml").read_text()
    )["tool"]["setuptools"]
    data = {"rules/presets": "configs/*.json", "demo": "weights/*.safetensors"}
    for room, pattern in data.items():
        name = f"adaptive_kernels.{room.replace('/', '.')}"
        assert project["package-data"][name] == [pattern]
        assert any((ROOT / room).glob(pattern))
