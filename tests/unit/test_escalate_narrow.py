"""Escalation with a draft: what a narrow question does to the money, and when all is asked."""

import json

import httpx
import pytest

from edge.asking import NONE, question
from edge.cloud.pool import Pool
from edge.cloud.pricing import worst_case_microusd
from edge.escalate import Escalation
from edge.store.book import Book
from edge.task import PoolSpec, TaskBudget, TaskSpec
from edge.types import Draft, Reason

LABELS = tuple(f"label number {n}" for n in range(20))
TEXT = "can ann come on the first of may?"
RAW = {"allow_cloud": "raw"}
PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 4}
POOL = PoolSpec(base_url="http://pool.example/v1", model="small", price=PRICE, retries=0)
SCHEMA = {
    "type": "object",
    "required": ["who", "when"],
    "properties": {
        "who": {"type": "string", "description": "Who is meant by the message. " * 9},
        "when": {"type": "string"},
    },
}
CLASSIFY = TaskSpec(kind="classify", privacy=RAW)
EXTRACT = TaskSpec(kind="extract", output_schema=SCHEMA, privacy=RAW)
VALUE = {"who": "Ann", "when": "1 May"}


def draft(value, **more):
    return Draft(value=value, model="m", digest="d", device="cpu", **more)


def worst(asked):
    return worst_case_microusd(
        POOL.price, asked.messages, asked.max_tokens, response_schema=asked.schema
    )


class World:
    """A pool that answers from a script, and an escalation over a ledger of its own."""

    def __init__(self, folder, *answers, cap=100_000):
        self.answers, self.sent = list(answers), []
        self.book = Book.open(folder, cap_microusd=cap, period="total")
        transport = httpx.MockTransport(self.handle)
        self.escalation = Escalation(
            self.book, open_pool=lambda name: Pool(name, POOL, env={}, transport=transport)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.escalation.close()
        self.book.close()

    def handle(self, request):
        self.sent.append(json.loads(request.content))
        content = {
            "choices": [{"message": {"content": self.answers.pop(0)}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 5},
        }
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(content).encode()))

    def holds(self):
        return self.book.ledger.holds()

    def ask(self, spec, made, **more):
        labels = LABELS if spec is CLASSIFY else ()
        return self.escalation.ask(
            "task", spec, TEXT, trace_id="t1", labels=labels, draft=made, **more
        )


COST = 30 + 4 * 5
LIKELY = draft(LABELS[2], candidates=(LABELS[2], LABELS[7]))
# name -> (answers, calls left, reason, value, how many labels each request offers)
ASKED_AGAIN = {
    "one fits": ([LABELS[7]], 2, Reason.ESCALATED, LABELS[7], [3]),
    "none fits, another does": ([NONE, LABELS[9]], 2, Reason.ESCALATED, LABELS[9], [3, 20]),
    "none fits, nor does one of all": ([NONE, NONE], 3, Reason.INVALID_OUTPUT, None, [3, 20]),
    "none fits, no call is left": ([NONE], 1, Reason.NONE_FITS, None, [3]),
    "a label that was not offered": ([LABELS[9]], 2, Reason.INVALID_OUTPUT, None, [3]),
}


@pytest.mark.parametrize("name", ASKED_AGAIN)
def test_where_no_candidate_fits_all_labels_are_asked_once_if_a_call_is_left(tmp_path, name):
    answers, calls_left, reason, value, offered = ASKED_AGAIN[name]
    with World(tmp_path, *answers) as world:
        outcome = world.ask(CLASSIFY, LIKELY, calls_left=calls_left)
        assert (outcome.reason, outcome.draft and outcome.draft.value) == (reason, value)
        told = [body["messages"][0]["content"].split("\n")[1:] for body in world.sent]
        assert [len(labels) for labels in told] == offered
        assert outcome.cost_microusd == COST * len(offered) == world.book.ledger.spent_microusd()
        assert [hold.state for hold in world.holds()] == ["settled"] * len(offered)
        assert len({hold.id for hold in world.holds()}) == len(offered)


def test_without_money_for_all_labels_the_first_answer_is_paid_and_the_task_may_wait(tmp_path):
    few, full = (question(CLASSIFY, TEXT, labels=LABELS, draft=each) for each in (LIKELY, None))
    cap = worst(full) + COST - 1
    assert worst(few) <= cap
    with World(tmp_path, NONE, cap=cap) as world:
        outcome = world.ask(CLASSIFY, LIKELY, calls_left=2)
        assert (outcome.reason, outcome.draft) == (Reason.BUDGET_EXCEEDED, None)
        assert outcome.cost_microusd == world.book.ledger.spent_microusd() == COST
        assert [hold.state for hold in world.holds()] == ["settled"]


def test_only_the_answer_that_ends_the_task_is_settled_by_the_caller(tmp_path):
    with World(tmp_path, NONE, LABELS[9]) as world:
        ended = []

        def settle(hold, answer, outcome):
            world.book.ledger.settle(hold, answer.cost_microusd, tokens_in=1, tokens_out=1)
            ended.append((hold.id, outcome.draft.value))

        world.ask(CLASSIFY, LIKELY, calls_left=2, settle=settle)
        assert [hold.state for hold in world.holds()] == ["settled", "settled"]
        assert [value for _, value in ended] == [LABELS[9]]
        assert ended[0][0] in {hold.id for hold in world.holds()}


def test_what_is_held_is_the_worst_case_of_the_narrow_question(tmp_path):
    made = draft(VALUE, doubtful=("when",))
    with World(tmp_path, '{"when": "2 May"}', LABELS[2]) as world:
        outcome = world.ask(EXTRACT, made)
        assert outcome.draft.value == {**VALUE, "when": "2 May"}
        world.ask(CLASSIFY, LIKELY)
        held = sorted(hold.worst_case_microusd for hold in world.holds())
        few = question(EXTRACT, TEXT, draft=made)
        labels = question(CLASSIFY, TEXT, labels=LABELS, draft=LIKELY)
        assert held == sorted([worst(few), worst(labels)])
        assert world.sent[0]["response_format"]["json_schema"]["schema"] == few.schema != SCHEMA
        assert world.sent[1]["max_tokens"] == labels.max_tokens < TaskBudget().max_output_tokens
