"""pool.yaml: what fits, and what is told of what does not."""

from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge_sync.pool import serve
from edge_sync.pool.config import read_settings

ROOT = Path(__file__).resolve().parents[4]
MODEL = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"


def written(folder, text):
    path = folder / "pool.yaml"
    path.write_text(text, "utf-8")
    return path


def test_defaults_are_one_replica_on_this_machine(tmp_path):
    found = read_settings(written(tmp_path, f"name: a\nmodel: {MODEL}\ntemplate: plain\n"))
    assert (found.replicas.min, found.replicas.max, found.ray.address) == (1, 1, "")
    assert found.listen.startswith("127.0.0.1:")
    assert found.ongoing > found.sequences


def test_paths_are_taken_from_the_settings_folder(tmp_path):
    (tmp_path / "m.gguf").symlink_to(MODEL)
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    found = read_settings(written(tmp_path, "name: a\nmodel: m.gguf\ntemplate: chat.jinja\n"))
    assert Path(found.model) == tmp_path / "m.gguf"
    assert Path(found.template) == tmp_path / "chat.jinja"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "no YAML"),
        ("name: a", "model"),
        (f"name: 'a b'\nmodel: {MODEL}", "name"),
        (f"name: a\nmodel: {MODEL}\nreplica: 3", "replica"),
        (f"name: a\nmodel: {MODEL}\nreplicas: {{min: 3, max: 2}}", "max (2) is below min (3)"),
        (f"name: a\nmodel: {MODEL}\ndevice: gpu", "resources.gpus"),
        (f"name: a\nmodel: {MODEL}\narguments: [--x]", "vllm"),
        ("name: a\nmodel: nowhere.gguf\ntemplate: plain", "nowhere.gguf"),
        ("name: a\nmodel: pool.yaml\ntemplate: plain", "cannot be used"),
        (f"name: a\nmodel: {MODEL}", "no chat template"),
        (f"name: a\nmodel: {MODEL}\ntemplate: nowhere.jinja", "no file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, told):
    with pytest.raises(ConfigError) as error:
        read_settings(written(tmp_path, text))
    assert told in str(error.value)


def test_vllm_takes_a_name_and_needs_no_file(tmp_path):
    text = "name: a\nengine: vllm\nmodel: org/model\narguments: [--dtype, auto]\n"
    found = read_settings(written(tmp_path, text))
    assert (found.model, found.arguments) == ("org/model", ("--dtype", "auto"))


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ("{cpus: 2}", "2 CPU each need 4"),
        ("{gpus: 1}", "this machine has 0"),
        ("{custom: {x: 1}}", "1 x each need 2"),
    ],
)
def test_a_machine_too_small_is_told(tmp_path, resources, told):
    text = f"name: a\nmodel: {MODEL}\ntemplate: plain\nreplicas: {{min: 2, max: 2}}\n"
    found = read_settings(written(tmp_path, f"{text}resources: {resources}\n"))
    with pytest.raises(ConfigError, match=told):
        serve.check_room(found, {"CPU": 3.0})
    serve.check_room(found, {"CPU": 4.0, "GPU": 2.0, "x": 2.0})


def test_without_ray_the_remedy_is_told(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    text = f"name: a\nmodel: {MODEL}\ntemplate: plain\nray: {{address: auto}}\n"
    environ = {}
    with pytest.raises(ConfigError) as error:
        serve.load_ray(read_settings(written(tmp_path, text)), environ)
    assert 'pip install "edge-runtime[ray]"' in str(error.value)
    assert environ["RAY_USAGE_STATS_ENABLED"] == "0"
