"""From a text to a decided draft: the local tiers of a task, judged and decided on in turn.

Asks the task's local model and, where its answer does not stand, the next one that the policy
names. Asks no pool, spends nothing, writes no trace; the watch over each tier sees its answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from edge.admit import Call
from edge.errors import GenerationError
from edge.judge import judge
from edge.local import LocalModels, LocalTask
from edge.oversight import NOT_CHECKED, Checked, Oversight
from edge.route import Action, Decision, Plan, Terms, decide
from edge.spending import Spending
from edge.types import Draft, Reason, Verdict

_BOTH = 2
_FOR_THE_CLOUD = {Reason.CONDITION, Reason.WORTH_ASKING}


@dataclass(frozen=True, slots=True)
class Considered:
    """A draft with what was thought of it.

    Attributes:
        draft: of a local model, or ``None``.
        verdict: over it.
        decision: what becomes of it.
        checked: what the watch made of it.
        calls: local models asked.
        tier: the task whose local model made it.

    """

    draft: Draft | None
    verdict: Verdict
    decision: Decision
    checked: Checked = NOT_CHECKED
    calls: int = 1
    tier: str = ""


class Considering:
    """The local tiers of one runtime.

    Args:
        tasks: by name.
        models: that answer them.
        oversight: what is promised of kept answers.
        spending: what asking the cloud costs now.

    """

    def __init__(
        self,
        tasks: Mapping[str, LocalTask],
        models: LocalModels,
        *,
        oversight: Oversight,
        spending: Spending,
        passed_over: Collection[str] = (),
    ) -> None:
        self._tasks = tasks
        self._models = models
        self._oversight = oversight
        self._spending = spending
        self._passed_over = passed_over

    def draft(self, task: LocalTask, text: str) -> Draft | None:
        """Ask a local model; a failure on this input is no draft, a broken model is an error."""
        try:
            return self._models.draft(task, text)
        except GenerationError:
            return None

    def pieces(self, task: LocalTask, text: str) -> Iterator[str | Draft]:
        """Stream from a local model, as ``draft``; a failure after some text is an error."""
        begun = False
        try:
            for piece in self._models.stream(task, text):
                begun = True
                yield piece
        except GenerationError:
            if begun:
                raise

    def consider(self, call: Call, the_plan: Plan, draft: Draft | None) -> Considered:
        """Decide on the first tier's draft and, where it does not stand, on the next tier's.

        What a rule sends up, or what is worth asking the cloud for, is not for another local model.
        An answer of the next tier is never certified: its certificate speaks of all traffic, and it
        sees what the first tier did not keep.
        """
        found = self._judged(call, call.local, the_plan, draft)
        then = call.spec.routing.then
        settled = found.decision.action is Action.KEEP or _FOR_THE_CLOUD & {*found.decision.reasons}
        if then is None or settled or the_plan.stopped or the_plan.calls_left < _BOTH:
            return found
        if then in self._passed_over:
            return found
        tier = self._tasks[then]
        again = self._judged(call, tier, the_plan, self.draft(tier, call.text), calls=_BOTH)
        if again.decision.action is not Action.KEEP:
            return self._neither(call, the_plan, found, again)
        sure = (Reason.CONFIDENT if r is Reason.CERTIFIED else r for r in again.decision.reasons)
        decision = replace(again.decision, reasons=(Reason.NEXT_TIER, *sure), certified=False)
        return replace(again, decision=decision)

    def _neither(
        self, call: Call, the_plan: Plan, found: Considered, again: Considered
    ) -> Considered:
        """Decide by the task's own policy, with the surer of two drafts that do not stand."""
        terms = self._terms(call, call.local, the_plan)
        decision = decide(call.spec, the_plan, found.draft, found.verdict, terms=terms, calls=_BOTH)
        others = (each for each in again.decision.reasons if each not in decision.reasons)
        first, *rest = decision.reasons
        decision = replace(decision, reasons=(first, Reason.NEXT_TIER, *rest, *others))
        surer = max(found, again, key=lambda each: (each.verdict.valid, _sure(each)))
        return replace(surer, decision=decision, calls=_BOTH)

    def _judged(
        self, call: Call, tier: LocalTask, the_plan: Plan, draft: Draft | None, calls: int = 1
    ) -> Considered:
        nothing = Verdict(valid=False, confidence=None, reasons=(_missing(the_plan),))
        verdict = judge(tier.spec, draft) if draft else nothing
        terms = self._terms(call, tier, the_plan)
        decision = decide(tier.spec, the_plan, draft, verdict, terms=terms, calls=calls)
        if draft is None or not verdict.valid:
            return Considered(draft, verdict, decision, calls=calls, tier=tier.name)
        kept = decision.action is Action.KEEP
        checked = self._oversight.looked_at(tier, draft, call.trace_id, kept=kept, rung=terms.rung)
        return Considered(draft, verdict, decision, checked, calls, tier.name)

    def _terms(self, call: Call, tier: LocalTask, the_plan: Plan) -> Terms:
        terms = self._oversight.terms(tier, call.context)
        if tier.spec.routing.value_usd is None or the_plan.cloud_blocked is not None:
            return terms
        charge = self._spending.charge(call)
        return replace(terms, cost_microusd=charge[0], price=charge[1]) if charge else terms


def _missing(the_plan: Plan) -> Reason:
    """Return why there is no draft."""
    if the_plan.local:
        return Reason.LOCAL_MODEL_FAILED
    return Reason.STOPPED if the_plan.halted else Reason.NO_LOCAL_MODEL


def _sure(found: Considered) -> float:
    return found.verdict.confidence or 0.0
