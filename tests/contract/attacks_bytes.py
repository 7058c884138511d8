"""Attacks by bytes that are no metadata, in the place of each part.

Where a part is named by its hash, the part above names the hostile bytes, so that the reader must
judge them itself.
"""

from __future__ import annotations

from collections.abc import Callable

from attack import attack
from simulator import TOP, Device, HubSimulator
from tuf.api.metadata import MetaFile

from edge.errors import HubDistrusted
from edge_sync.trust.metadata import MAX_BYTES
from edge_sync.wire import Bundle


def _instead(name: str, text: Callable[[str], str]) -> None:
    for part in (*TOP, "assignment"):

        def prepare(sim: HubSimulator, device: Device, part: str = part) -> Bundle:
            changed = text(sim.sign(part).decode())
            if part in {"snapshot", "targets"}:
                _name_instead(sim, part, changed)
            if part == "root":
                return sim.bundle(device, roots=[changed])
            return sim.bundle(device, **{part: changed})

        prepare.__name__ = f"{part}_{name}"
        attack(HubDistrusted, *(("test_max_metadata_lengths",) if name == "too_long" else ()))(
            prepare
        )


def _name_instead(sim: HubSimulator, part: str, text: str) -> None:
    """Let the part above name these very bytes, so that the reader must judge them itself."""
    data = text.encode("utf-8", "surrogatepass")
    if part == "targets":
        sim.snapshot.meta["targets.json"] = MetaFile.from_data(1, data, ["sha256"])
        sim.link(upwards_from="snapshot")
    else:
        sim.timestamp.snapshot_meta = MetaFile.from_data(1, data, ["sha256"])


def _within(text: str, value: str) -> str:
    return text.replace('"signed":{', f'"signed":{{"x":{value},', 1)


_instead("of_10_mb", lambda text: text + " " * 10_000_000)
_instead("too_long", lambda text: text + " " * max(MAX_BYTES.values()))
_instead("cut_short", lambda text: text[:-1])
_instead("that_is_a_list", lambda text: f"[{text}]")
_instead("that_is_deep", lambda text: text[:-1] + ',"x":' + "[" * 7_000 + "]" * 7_000 + "}")
_instead("with_a_deep_field", lambda text: _within(text, "[" * 900 + "]" * 900))
_instead("with_a_key_twice", lambda text: text[:-1] + ',"signatures":[]}')
_instead(
    "with_an_inner_key_twice", lambda text: text.replace('"version":', '"version":9,"version":')
)
_instead("with_a_huge_integer", lambda text: _within(text, "9" * 5_000))
_instead("with_an_integer_of_64_bits", lambda text: _within(text, str(2**63)))
_instead("with_a_fraction", lambda text: _within(text, "1.0"))
_instead("with_a_negative_integer", lambda text: _within(text, "-1"))
_instead("with_infinity", lambda text: _within(text, "Infinity"))
_instead("with_a_field_beside", lambda text: text[:-1] + ',"note":1}')
_instead("of_no_kind", lambda text: text.replace('"_type":', '"type":'))
_instead("of_another_specification", lambda text: text.replace('"1.0.', '"2.0.'))
_instead("without_signatures", lambda text: text.replace('"signatures":', '"signature":'))
_instead("with_half_a_character", lambda text: _within(text, '"\\ud800"'))
