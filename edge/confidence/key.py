"""What a calibration or a certificate was measured on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What a calibration was measured on; it holds for nothing else.

    Attributes:
        model_digest: sha256 of the weights, and so of their quantization.
        task: the task's name.
        prompt_digest: sha256 of the prompt's version and wording; empty for a head.

    """

    model_digest: str
    task: str
    prompt_digest: str = ""
