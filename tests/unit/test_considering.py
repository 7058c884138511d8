"""What a local model is given to read on a degrade step."""

import time
from contextlib import nullcontext

import pytest

from edge.admit import Call
from edge.allowance import Allowance
from edge.backends.fake import FakeDecoder
from edge.considering import Considering
from edge.degrade import FULL, Stance
from edge.errors import InputError
from edge.local import LocalTask
from edge.route import Circumstances, plan
from edge.task import Prompt, TaskSpec
from edge.types import Draft, Usage

PROMPT = Prompt(version=1, template="{text}")
SMALLER = Stance(step=1, smaller="small")
TEXT = "four words are here"


def task(name, most):
    spec = {"kind": "generate", "model": name, "prompt": "plain"}
    budget = {"max_input_tokens": most}
    return LocalTask(name, TaskSpec.model_validate({**spec, "budget": budget}), PROMPT)


TASKS = {"large": task("large", 64), "small": task("small", 12)}


class Models:
    """Refuses what is too long, as a decoder's prompt does; the tokens are bytes."""

    def decoder(self, _):
        return nullcontext(FakeDecoder())

    def draft(self, local, text):
        if len(text) >= local.spec.budget.max_input_tokens:
            raise InputError("The prompt is too long.")
        return Draft(text, local.spec.model, "", "cpu", Usage(len(text), 1))


def drafted(name, stance):
    local, now = TASKS[name], time.perf_counter()
    call = Call(local, TEXT, "t", now, Allowance(local.spec.budget, started=now), stance=stance)
    considering = Considering(TASKS, Models(), oversight=None, spending=None)
    return considering.draft(call, plan(local.spec, Circumstances(offline=True, has_pool=False)))


def test_a_smaller_model_reads_what_fits_its_own_budget():
    assert drafted("large", FULL).value == TEXT
    draft = drafted("large", SMALLER)
    assert (draft.model, draft.value, draft.truncated) == ("small", "four words ", True)


def test_without_a_step_what_is_too_long_is_refused():
    with pytest.raises(InputError, match="too long"):
        drafted("small", FULL)
