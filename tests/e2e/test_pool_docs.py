"""Every setting on the page about pools is one that the programs take."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from edge_sync.gateway import config as gateway
from edge_sync.pool import config as pool

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pools.md").read_text("utf-8")
BLOCK = re.compile(r"^```text ([\w.]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(vllm serve|llama-server) (.*)$", re.MULTILINE)
MODEL = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"


def shown(name):
    return [body for title, body in BLOCK.findall(PAGE) if title == name]


def gateway_settings(folder, upstreams=None):
    (body,) = shown("gateway.yaml")
    whole = yaml.safe_load(body.replace("64 HEX DIGITS", "'" + "ab" * 32 + "'"))
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(whole | ({"upstreams": upstreams} if upstreams else {})))
    return gateway.read_settings(path)


def test_the_gateways_settings_are_taken(tmp_path):
    found = gateway_settings(tmp_path)
    assert (found.pool, len(found.upstreams)) == ("field", 1)


def test_all_upstreams_are_taken_together(tmp_path):
    upstreams = [yaml.safe_load(body) for body in shown("upstream")]
    found = gateway_settings(tmp_path, upstreams)
    assert [each.name for each in found.upstreams] == ["vllm", "llama", "ray"]


@pytest.mark.parametrize(("program", "line"), COMMAND.findall(PAGE))
def test_a_server_listens_where_the_gateway_asks(program, line):
    words = shlex.split(line)
    options = dict(itertools.pairwise(words))
    url = f"http://{options['--host']}:{options['--port']}/v1"
    name = options["--served-model-name" if program == "vllm serve" else "--alias"]
    upstreams = [yaml.safe_load(body) for body in shown("upstream")]
    assert (url, name) in [(each["base_url"], each["model"]) for each in upstreams]


@pytest.mark.parametrize("body", shown("pool.yaml"))
def test_the_pools_settings_are_taken(body, tmp_path):
    (tmp_path / "qwen2.5-7b-q4_k_m.gguf").symlink_to(MODEL)
    path = tmp_path / "pool.yaml"
    # The model that stands in for a large one has no chat template of its own.
    path.write_text(body + "template: plain\n", "utf-8")
    found = pool.read_settings(path)
    assert found.name == "qwen"
    assert found.replicas.max > found.replicas.min


def test_the_pool_listens_where_the_gateway_asks(tmp_path):
    ports = {yaml.safe_load(body).get("listen") for body in shown("pool.yaml")} - {None}
    urls = [yaml.safe_load(body)["base_url"] for body in shown("upstream")]
    assert ports
    assert all(f"http://{listen}/v1" in urls for listen in ports)
