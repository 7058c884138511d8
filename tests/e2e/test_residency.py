"""The shipped models under a memory budget: they take turns, and the answers stay right."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import edge
from edge.cli.main import main
from edge.errors import ConfigError, LoadError

CARD = ("support_intent", "my card was swallowed by the machine", "card_swallowed")
JAZZ = ("action", "play some jazz by miles davis", {"intent": "PlayMusic"})
ENCODER, HEAD, DECODER = "minilm-l6-int8", "banking77-head", "actions-q8_0"
TIGHT_MB = 34  # the encoder and a head (23.1 + 9.3), or the decoder (16.3) and a head; not all


def small(folder, **options):
    return edge.open(state=folder / "state", offline=True, threads=1, **options)


def ask(runtime, case):
    task, text, value = case
    found = runtime.run(task, text).value
    if isinstance(value, dict):
        assert found["intent"] == value["intent"]
        assert found["artist"] == "miles davis"
    else:
        assert found == value
    return found


def here(runtime):
    return {resident.name: resident for resident in runtime.models.residency.report()}


def test_without_a_budget_everything_stays(tmp_path):
    with small(tmp_path) as runtime:
        assert here(runtime) == {}
        for case in (CARD, JAZZ, CARD):
            ask(runtime, case)
        assert set(here(runtime)) == {ENCODER, HEAD, DECODER}


def test_encoder_and_decoder_take_turns(tmp_path):
    with small(tmp_path, memory_mb=TIGHT_MB) as runtime:
        answers = []
        for _ in range(3):
            answers.append(ask(runtime, CARD))
            assert {ENCODER, HEAD} <= set(here(runtime))
            assert DECODER not in here(runtime)
            answers.append(json.dumps(ask(runtime, JAZZ)))
            assert DECODER in here(runtime)
            assert ENCODER not in here(runtime)
            total = sum(resident.bytes_estimated for resident in here(runtime).values())
            assert 16e6 < total <= TIGHT_MB * 1e6
        assert len(set(answers)) == 2


def test_callers_at_once_all_get_the_right_answer(tmp_path):
    with small(tmp_path, memory_mb=TIGHT_MB) as runtime:
        started = threading.Barrier(4)

        def call(number):
            started.wait()
            return [ask(runtime, (CARD, JAZZ)[(number + step) % 2]) for step in range(4)]

        with ThreadPoolExecutor(4) as pool:
            for answers in pool.map(call, range(4)):
                assert len(answers) == 4
        assert all(resident.in_use == 0 for resident in here(runtime).values())


def test_a_stream_keeps_its_model_until_it_ends(tmp_path):
    with small(tmp_path, memory_mb=60) as runtime:
        steps = runtime.stream("draft", "play some jazz by miles davis")
        text = [next(steps).text]
        assert here(runtime)[DECODER].in_use == 1
        assert not runtime.models.residency.unload(DECODER)
        ask(runtime, CARD)
        text += [chunk.text for chunk in steps]
        assert "miles davis" in "".join(text)
        assert here(runtime)[DECODER].in_use == 0
        dropped = runtime.stream("draft", "play some jazz by miles davis")
        next(dropped)
        dropped.close()
        assert here(runtime)[DECODER].in_use == 0
        assert runtime.models.residency.unload(DECODER)


def test_what_does_not_fit_is_named(tmp_path):
    with small(tmp_path, memory_mb=20) as runtime:
        ask(runtime, JAZZ)
        with pytest.raises(LoadError) as caught:
            runtime.run(*CARD[:2])
        assert all(part in str(caught.value) for part in (ENCODER, "23.1 MB", "20.0 MB"))
        assert "memory_mb" in caught.value.hint
        ask(runtime, JAZZ)


def pack_with(folder, memory):
    path = folder / "small.yaml"
    task = {"kind": "classify", "model": HEAD}
    document = {"name": "small", "version": 1, "tasks": {"t": task}, "memory": memory}
    path.write_text(json.dumps(document), "utf-8")
    return path


def test_a_pack_sets_budget_keep_alive_and_pins(tmp_path):
    memory = {"budget_mb": 33, "keep_alive_s": 0, "pin": [ENCODER]}
    path = pack_with(tmp_path, memory)
    with small(tmp_path, pack=path) as runtime:
        assert runtime.run("t", CARD[1]).value == CARD[2]
        late = threading.Event()
        for _ in range(500):
            if HEAD not in here(runtime):
                break
            late.wait(0.01)
        assert set(here(runtime)) == {ENCODER}
        assert runtime.run("t", CARD[1]).value == CARD[2]
    with small(tmp_path, pack=path, memory_mb=23) as runtime, pytest.raises(LoadError):
        runtime.run("t", CARD[1])


@pytest.mark.parametrize(
    ("memory", "memory_mb", "said"),
    [
        ({"pin": ["no-such"]}, None, "pins 'no-such'"),
        ({"budget_mb": 0}, None, "memory.budget_mb"),
        ({"keep_alive_s": -1}, None, "memory.keep_alive_s"),
        ({"budget": 3}, None, "memory.budget: unknown key"),
        ({}, -5, "memory_mb"),
        ({}, float("nan"), "memory_mb"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, memory, memory_mb, said):
    with pytest.raises(ConfigError, match=said):
        small(tmp_path, pack=pack_with(tmp_path, memory), memory_mb=memory_mb)


def test_every_shipped_model_has_an_estimate(tmp_path):
    with small(tmp_path) as runtime:
        sizes = {name: runtime.models.loader.estimate(name) for name in (ENCODER, HEAD, DECODER)}
    assert sizes == {ENCODER: 23_107_002, HEAD: 9_263_664, DECODER: 16_268_960}


def test_doctor_names_a_model_that_is_larger_than_the_budget(tmp_path, monkeypatch, capsys):
    path = pack_with(tmp_path, {"budget_mb": 20})
    told = ["edge", "doctor", "--pack", str(path), "--state", str(tmp_path / "state"), "--json"]
    monkeypatch.setattr("sys.argv", told)
    with pytest.raises(SystemExit, match="1"):
        main()
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["budget_bytes"] == 20_000_000
    assert found["memory"]["estimates"] == {ENCODER: 23_107_002, HEAD: 9_263_664}
    (problem,) = found["problems"]
    assert f"{ENCODER} needs about 23.1 MB" in problem
