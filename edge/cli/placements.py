"""Where each model runs, for ``edge doctor``: every one is loaded once and let go."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from edge.backends.base import Placement
from edge.errors import EdgeError
from edge.loading import Loader


def placements(loader: Loader) -> dict[str, dict[str, Any]]:
    """Return each model's placement, or ``{"problem": ...}`` where it cannot be loaded."""
    found: dict[str, dict[str, Any]] = {}
    for name in loader.store.names():
        try:
            placement = _placement(loader, name)
        except EdgeError as error:
            found[name] = {"problem": error.message}
        else:
            found[name] = dataclasses.asdict(placement)
    return found


def sentence(placement: dict[str, Any]) -> str:
    """Return a placement in a few words."""
    if "problem" in placement:
        return f"nowhere: {placement['problem']}"
    share = placement["share"]
    part = "" if share == 1 else " in part" if share is None else f" {share:.0%} of it"
    same = placement["asked"] in {"auto", placement["used"]}
    asked = "" if same else f", asked for {placement['asked']}"
    why = f" ({placement['why']})" if placement["why"] else ""
    return f"on {placement['used']}{part}{asked}{why}"


def _placement(loader: Loader, name: str) -> Placement:
    kind = loader.store.manifest(name).kind
    if kind == "head":
        return Placement("cpu", "cpu", why="numpy")
    quick = dataclasses.replace(loader, threads=1)
    model = quick.encoder(name) if kind == "encoder" else quick.decoder(name)
    with contextlib.closing(model):
        return model.info.placement or Placement(model.info.device, model.info.device, share=None)
