"""From a text to a decided draft: the local tiers of a task, judged and decided on in turn.

Asks the task's local model and, where its answer does not stand, the next one that the policy
names; on a degrade step, the model and the length of input that the step says, and no second one.
Each call is within the action's allowance. Asks no pool, spends nothing, writes no trace; the watch
over each tier sees its answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from edge.admit import Call
from edge.answering import LATE, cut_to_fit
from edge.errors import GenerationError, InputError
from edge.judge import judge
from edge.local import LocalModels, LocalTask
from edge.oversight import NOT_CHECKED, Checked, Oversight
from edge.route import Action, Decision, Plan, Terms, best_effort, decide
from edge.spending import Spending
from edge.task import TaskSpec
from edge.types import Draft, Reason, Usage, Verdict

_FOR_THE_CLOUD = {Reason.CONDITION, Reason.WORTH_ASKING}


@dataclass(frozen=True, slots=True)
class Considered:
    """A draft with what was thought of it.

    Attributes:
        draft: of a local model, or ``None``.
        verdict: over it.
        decision: what becomes of it.
        checked: what the watch made of it.
        tier: the task whose local model made it.

    """

    draft: Draft | None
    verdict: Verdict
    decision: Decision
    checked: Checked = NOT_CHECKED
    tier: str = ""


class Considering:
    """The local tiers of one runtime.

    Args:
        tasks: by name.
        models: that answer them.
        oversight: what is promised of kept answers.
        spending: what asking the cloud costs now.
        passed_over: tasks whose local model may not be asked.

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

    def draft(self, call: Call, the_plan: Plan) -> Draft | None:
        """Ask the first tier; a failure on this input is no draft, a broken model is an error.

        Raises:
            InputError: the text is longer than the task's budget.
            ModelError: the model cannot be loaded.

        """
        return self._draft(call, self._first(call)) if self._may_run(call, the_plan) else None

    def pieces(self, call: Call, the_plan: Plan) -> Iterator[str | Draft]:
        """Stream from the first tier, as ``draft``; a failure after some text is an error."""
        begun = False
        tier = self._bounded(call, self._first(call))
        text = self._text(call, tier) if self._may_run(call, the_plan) else None
        if text is None:
            return
        try:
            for piece in self._models.stream(tier, text):
                begun = True
                yield self._counted(call, piece, text) if isinstance(piece, Draft) else piece
        except GenerationError:
            self._failed(call, tier)
            if begun:
                raise

    def consider(self, call: Call, the_plan: Plan, draft: Draft | None) -> Considered:
        """Decide on the first tier's draft and, where it does not stand, on the next tier's.

        What a rule sends up, or what is worth asking the cloud for, is not for another local model.
        An answer of the next tier is never certified: its certificate speaks of all traffic, and it
        sees what the first tier did not keep.
        """
        if call.stance.step:
            return self._degraded(call, the_plan, draft)
        found = self._judged(call, call.local, the_plan, draft)
        then = call.spec.routing.then
        settled = found.decision.action is Action.KEEP or _FOR_THE_CLOUD & {*found.decision.reasons}
        if then is None or settled or the_plan.stopped or then in self._passed_over:
            return found
        if call.allowance.denies() is not None:
            return found
        return self._next(call, the_plan, found, self._tasks[then])

    def _next(self, call: Call, the_plan: Plan, found: Considered, tier: LocalTask) -> Considered:
        try:
            draft = self._draft(call, tier)
        except InputError:  # the first tier took the text: what is left is too little for it
            call.allowance.calls -= 1  # it never began
            decision = found.decision
            reasons = (*decision.reasons, Reason.TOKEN_LIMIT)
            return replace(found, decision=replace(decision, reasons=reasons))
        again = self._judged(call, tier, the_plan, draft)
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
        decision = self._decide(call, call.local, the_plan, (found.draft, found.verdict), terms)
        others = (each for each in again.decision.reasons if each not in decision.reasons)
        first, *rest = decision.reasons
        decision = replace(decision, reasons=(first, Reason.NEXT_TIER, *rest, *others))
        surer = max(found, again, key=lambda each: (each.verdict.valid, _sure(each)))
        return replace(surer, decision=decision)

    def _degraded(self, call: Call, the_plan: Plan, draft: Draft | None) -> Considered:
        """Decide by the task's own policy on what a degrade step made; no watch counts it.

        A certificate, and what the watch promises, speak of the task's own model and whole input.
        """
        verdict = self._verdict(call, call.spec, the_plan, draft)
        terms = Terms(rules=call.local.rules, context=call.context)
        decision = decide(
            call.spec, the_plan, draft, verdict, terms=terms, calls=call.allowance.calls
        )
        if call.stance.best_effort:
            decision = best_effort(decision, the_plan)
        return Considered(draft, verdict, decision, tier=self._first(call).name)

    def _judged(
        self, call: Call, tier: LocalTask, the_plan: Plan, draft: Draft | None
    ) -> Considered:
        verdict = self._verdict(call, tier.spec, the_plan, draft)
        terms = self._terms(call, tier, the_plan)
        decision = self._decide(call, tier, the_plan, (draft, verdict), terms)
        if draft is None or not verdict.valid:
            return Considered(draft, verdict, decision, tier=tier.name)
        kept = decision.action is Action.KEEP
        checked = self._oversight.looked_at(tier, draft, call.trace_id, kept=kept, rung=terms.rung)
        return Considered(draft, verdict, decision, checked, tier.name)

    def _decide(
        self,
        call: Call,
        tier: LocalTask,
        the_plan: Plan,
        judged: tuple[Draft | None, Verdict],
        terms: Terms,
    ) -> Decision:
        """Decide; what goes up only because it is worth it must find room in the premium share."""
        calls = call.allowance.calls
        decision = decide(tier.spec, the_plan, *judged, terms=terms, calls=calls)
        if Reason.WORTH_ASKING not in decision.reasons or self._spending.claim(call):
            return decision
        terms = replace(terms, cost_microusd=None)
        return decide(tier.spec, the_plan, *judged, terms=terms, calls=calls)

    @staticmethod
    def _verdict(call: Call, spec: TaskSpec, the_plan: Plan, draft: Draft | None) -> Verdict:
        if draft is None:
            missing = call.allowance.refused or _missing(the_plan)
            return Verdict(valid=False, confidence=None, reasons=(missing,))
        verdict = judge(spec, draft)
        if draft.problem != LATE:
            return verdict
        return replace(verdict, reasons=(*verdict.reasons, Reason.DEADLINE))

    def _terms(self, call: Call, tier: LocalTask, the_plan: Plan) -> Terms:
        terms = self._oversight.terms(tier, call.context)
        if tier.spec.routing.value_usd is None or the_plan.cloud_blocked is not None:
            return terms
        charge = self._spending.charge(call)
        return replace(terms, cost_microusd=charge[0], price=charge[1]) if charge else terms

    def _first(self, call: Call) -> LocalTask:
        """Return the task whose local model answers first: its own, or that of a degrade step."""
        smaller = call.stance.smaller
        return call.local if smaller is None else self._tasks[smaller]

    def _may_run(self, call: Call, the_plan: Plan) -> bool:
        if the_plan.local and call.stance.smaller in self._passed_over:
            call.allowance.refused = Reason.STOPPED
            return False
        return the_plan.local

    def _draft(self, call: Call, tier: LocalTask) -> Draft | None:
        tier = self._bounded(call, tier)
        text = self._text(call, tier)
        if text is None:
            return None
        try:
            return self._counted(call, self._models.draft(tier, text), text)
        except GenerationError:
            self._failed(call, tier)
            return None

    def _bounded(self, call: Call, tier: LocalTask) -> LocalTask:
        budget, most = call.allowance.within(tier.spec.budget), call.stance.context
        if most is not None and most < budget.max_input_tokens:
            budget = budget.model_copy(update={"max_input_tokens": most})
        return tier.within(budget, call.allowance.canceller)

    def _text(self, call: Call, tier: LocalTask) -> str | None:
        """Take a call from the allowance and return what to read; ``None`` where there is no room.

        On a degrade step that reads less, or asks another model, a decoder reads what fits; heads
        and encoders cut themselves.
        """
        if not call.allowance.take_call():
            return None
        cuts = call.stance.context is not None or call.stance.smaller is not None
        if not cuts or not tier.spec.decodes or tier.spec.model is None:
            return call.text
        with self._models.decoder(tier.spec.model) as decoder:
            text = cut_to_fit(tier.name, tier.spec, tier.prompt, decoder, call.text)
        if text.strip():
            return text
        call.allowance.refused = Reason.TOKEN_LIMIT
        return None

    @staticmethod
    def _counted(call: Call, draft: Draft, text: str) -> Draft:
        call.allowance.used(draft.usage)
        return draft if text == call.text else replace(draft, truncated=True)

    @staticmethod
    def _failed(call: Call, tier: LocalTask) -> None:
        """Count what a call that failed used at most."""
        budget = tier.spec.budget
        call.allowance.used(Usage(budget.max_input_tokens, budget.max_output_tokens))
        call.allowance.failed = True


def _missing(the_plan: Plan) -> Reason:
    """Return why there is no draft."""
    if the_plan.local:
        return Reason.LOCAL_MODEL_FAILED
    return Reason.STOPPED if the_plan.halted else Reason.NO_LOCAL_MODEL


def _sure(found: Considered) -> float:
    return found.verdict.confidence or 0.0
