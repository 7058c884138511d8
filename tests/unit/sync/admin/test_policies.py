"""Publishing, and what is refused: nothing is ever half applied."""

import json

import pytest

from edge.errors import ConfigError, InputError
from edge.overlay import load_document
from edge_sync.hub import audit, policies, revisions, rollouts

GOOD = "ROUTING:\n  keep_above: 0.8\n"
ESSAY = """\
TASK_BUDGETS:
  max_model_calls: 3
ROUTING:
  escalate_if:
    - condition: "confidence < 0.72"
      model: gpu
CACHING:
  semantic_cache: {enabled: true, similarity_threshold: 0.92, ttl_seconds: 86400}
POOLS:
  gpu:
    base_url: https://pool.example.org/v1
    model: big
    price: {input_usd_per_mtok: 1, output_usd_per_mtok: 3}
"""


def test_revisions_rise_and_devices_accept_what_they_are_assigned(hub, publish, fetched):
    assert publish(GOOD, at_once=["kiosks", "lab"]).revision == 1
    assert publish(GOOD.replace("0.8", "0.9"), at_once=["lab"]).revision == 2
    kiosk, bench = fetched("0" * 32, "kiosks"), fetched("0" * 32, "lab")
    assert (kiosk.assignment.revision, bench.assignment.revision) == (1, 2)
    assert kiosk.sections["routing"]["keep_above"] == 0.8
    assert bench.sections["routing"]["keep_above"] == 0.9
    assert bench.assignment.serial > kiosk.assignment.serial
    assert revisions.groups_by_revision(hub) == {1: ["kiosks"], 2: ["lab"]}


def test_conditions_are_trees_in_what_is_signed(hub, publish, fetched):
    publish(ESSAY.replace("ROUTING:\n", "ROUTING:\n  pool: gpu\n"), at_once=["lab"])
    rule = fetched("0" * 32, "lab").sections["routing"]["escalate_if"][0]
    assert rule["condition"]["text"] == "confidence < 0.72"
    assert rule["condition"]["tree"]
    assert load_document(revisions.get(hub).document.encode()).revision == 1


def test_who_published_what_is_in_the_audit_log(hub, publish):
    made = publish(GOOD, message="Fewer doubts", at_once=["lab"])
    entry = audit.page(hub.store, limit=1)[0]
    assert (entry.who, entry.what, entry.about) == ("ann", "policy.publish", "revision 1")
    assert entry.detail == {
        "revision": 1,
        "sha256": made.digest,
        "message": "Fewer doubts",
        "groups": ["lab"],
    }


def test_an_earlier_content_comes_back_as_a_new_revision(hub, publish, fetched):
    publish(GOOD, at_once=["lab"])
    publish(GOOD.replace("0.8", "0.9"), at_once=["lab"])
    made = policies.restore(hub, 1, who="ann", at_once=["lab"])
    assert (made.revision, made.restores) == (3, 1)
    device = fetched("0" * 32, "lab")
    assert device.assignment.revision == 3
    assert device.sections == json.loads(revisions.get(hub, 1).document)["sections"]
    assert policies.changes(revisions.get(hub, 1), made) == []


def test_what_changed_is_listed_key_by_key(hub, publish):
    first = publish(GOOD)
    checked = policies.check(
        hub, GOOD.replace("0.8", "0.9").encode() + b"privacy: {allow_cloud: never}\n", what="p"
    )
    assert [(c.path, c.before, c.after) for c in policies.changes(first, checked)] == [
        ("privacy.allow_cloud", None, "never"),
        ("routing.keep_above", 0.8, 0.9),
    ]


def test_old_revisions_leave_the_signed_list_unless_they_are_in_force(hub, publish):
    publish(GOOD, at_once=["kiosks"])
    for _ in range(policies._LISTED + 3):
        publish(GOOD)
    listed = hub.repository.targets.signed.targets
    assert len(listed) == policies._LISTED + 1
    assert "policies/1.json" in listed
    assert "policies/2.json" not in listed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ROUTING:\n  keep_abov: 0.8\n", ["keep_abov"]),
        ("ROUTERING: {}\n", ["routering"]),
        ("ROUTING: {keep_above: high}\n", ["routing.keep_above"]),
        ("ROUTING: {keep_above: 2}\n", ["routing.keep_above"]),
        ("ROUTING: 5\n", ["routing"]),
        ("TASKS: [spam]\n", ["tasks"]),
        (ESSAY.replace("confidence < 0.72", "confidance < 0.72"), ["confidance"]),
        (ESSAY.replace("confidence < 0.72", "confidence <"), ["confidence <"]),
        (ESSAY.replace("confidence < 0.72", "confidence < 'low'"), ["confidence"]),
        (ESSAY.replace("model: gpu", "model: tpu"), ["tpu"]),
        ("a: &a\n  b: *a\n", ["policy.yaml"]),
        ("ROUTING: &r {keep_above: 0.8}\nrouting: *r\n", ["upper", "lower"]),
        ("ROUTING: {keep_above: 0.8, keep_above: 0.9}\n", ["stands twice"]),
        ("- 1\n", ["policy.yaml"]),
        ("ROUTING: [\n", ["YAML"]),
        ("", ["policy.yaml"]),
        ("MODELS: {magika: {digest: " + "a" * 64 + "}}\n", ["magika", "does not have"]),
        ("x" * 10_000_000, ["1000000"]),
        ("ROUTING: " + "[" * 5_000 + "\n", ["policy.yaml"]),
    ],
)
def test_a_bad_policy_is_refused_and_changes_nothing(hub, publish, dump, text, words):
    publish(GOOD, at_once=["lab"])
    before = dump()
    with pytest.raises(ConfigError) as refused:
        publish(text)
    told = str(refused.value)
    assert len(told) < 700
    assert not [word for word in words if word not in told.replace(",", "")], told
    assert dump() == before


def test_bytes_that_are_no_text_are_refused(hub, dump):
    before = dump()
    with pytest.raises(ConfigError):
        policies.check(hub, b"\xff\xfe\x00", what="policy.yaml")
    assert dump() == before


@pytest.mark.parametrize(
    ("at_once", "message", "words"),
    [
        (["nowhere"], "why", "no group 'nowhere'"),
        ((), "", "tells nobody why"),
        ((), " \n", "tells nobody why"),
        ((), "x" * 501, "tells nobody why"),
    ],
)
def test_a_publication_that_fails_late_leaves_nothing(hub, publish, dump, at_once, message, words):
    publish(GOOD)
    before = dump()
    with pytest.raises((ConfigError, InputError), match=words):
        publish(GOOD, at_once=at_once, message=message)
    assert dump() == before


def test_a_group_in_a_rollout_is_left_alone(hub, publish, dump):
    publish(GOOD)
    rollouts.start(hub, 1, who="ann", names=["lab"], waves="50,100")
    before = dump()
    with pytest.raises(ConfigError, match="Rollout 1 is running in group lab"):
        publish(GOOD, at_once=["kiosks", "lab"])
    assert dump() == before


@pytest.mark.parametrize(
    ("cap", "period", "spent", "words"),
    [
        ("2", "month", {1: 3_200_000}, "1 device has spent since 2026-11-01: kiosk-1 $3.20."),
        ("2", "month", {1: 3_200_000, 2: 2_500_000}, "2 devices have spent"),
        ("2", "month", {1: 3_200_000}, "Set it to $3.20 or more, or publish it after 2026-12-01."),
        (
            "2",
            "total",
            {1: 3_200_001},
            "1 device has spent: kiosk-1 $3.200001. Set it to $3.200001",
        ),
        ("0", "day", {1: 1}, "kiosk-1 $0.000001"),
    ],
)
def test_a_budget_below_what_is_spent_is_refused(
    hub, publish, dump, device, spend, cap, period, spent, words
):
    for number, microusd in spent.items():
        spend(device(number), microusd)
    before = dump()
    with pytest.raises(ConfigError) as refused:
        publish(f"budget: {{cap_usd: {cap}, period: {period}}}\n")
    assert words in str(refused.value)
    assert dump() == before


def test_a_budget_looks_at_its_period_at_holds_and_at_devices_that_are_in(
    hub, publish, device, spend, clock
):
    first, second, third = device(1), device(2), device(3, status="revoked")
    spend(first, 9_000_000, at=clock.at - 25 * 86_400)
    spend(second, 9_000_000, state="released")
    spend(third, 9_000_000)
    assert publish("budget: {cap_usd: 2}\n").revision == 1
    spend(first, 1_500_000)
    spend(first, 600_000, state="unclear")
    with pytest.raises(ConfigError, match=r"kiosk-1 \$2\.10"):
        publish("budget: {cap_usd: 2}\n")
    assert publish("budget: {cap_usd: 2.1}\n").revision == 2
    # A policy that says nothing of the budget changes none.
    assert publish(GOOD).revision == 3


def test_what_a_device_makes_up_does_not_overflow_the_sum(hub, publish, device, spend, clock):
    liar = device(1)
    for number in range(3):
        spend(liar, 2**62, at=clock.at - number)
    with pytest.raises(ConfigError, match="kiosk-1"):
        publish("budget: {cap_usd: 2}\n")


def test_packs_that_devices_report_are_checked_and_strange_ones_are_told(hub, device):
    device(1, pack="kiosk")
    device(2, pack="acme-private")
    checked = policies.check(hub, GOOD.encode(), what="p")
    assert (list(checked.packs), checked.strange) == (["kiosk"], ("acme-private",))


def test_a_pack_can_be_named(hub, tmp_path, device):
    device(1, pack="acme-private")
    (tmp_path / "pack.yaml").write_text("name: bare\nversion: 1\ntasks: {}\n")
    named = [str(tmp_path / "pack.yaml")]
    checked = policies.check(hub, GOOD.encode(), what="p", packs=named)
    assert (list(checked.packs), checked.strange) == (["bare"], ())
    with pytest.raises(ConfigError, match="no pack named 'nope'"):
        policies.check(hub, GOOD.encode(), what="p", packs=["nope"])


@pytest.mark.parametrize("revision", [None, 0, 7])
def test_a_revision_that_is_not_there(hub, revision):
    with pytest.raises(ConfigError, match="policy list"):
        revisions.get(hub, revision)
    assert revisions.newest(hub) is None
