"""Rules of a policy: a condition, read once, and whom to ask where it holds.

Knows the names of the signals that the engines give, and nothing of how they come about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge.errors import ConfigError
from edge.policy.conditions import Condition, Type, parse
from edge.policy.sections import RuleCondition
from edge.policy.written import read_tree

SIGNALS = (
    "confidence",
    # of a head, a decision over labels, or both
    "log_odds",
    "probability",
    "margin",
    "entropy",
    "similarity",
    "gap",
    "agreement",
    "score",
    "log_mass",
    # of a generated answer
    "mean_logprob",
    "min_logprob",
    "q10_logprob",
    "min_margin",
    "max_entropy",
    "tokens",
    "value_mean_logprob",
    "value_min_logprob",
    "value_q10_logprob",
    "value_margin",
    "first_margin",
    "name_margin",
    "worst_field",
    "outside_mass",
    # of an extraction beside its text
    "missing",
    "partial",
    "left_out",
    "overlap",
)
"""What a condition may look at beside a pack's own ``context``; all are numbers."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the policy, its condition read.

    Attributes:
        condition: the answer goes up where it is known to hold; a missing value keeps it here.
        pool: whom to ask; the task's own pool where ``None``.

    """

    condition: Condition
    pool: str | None = None


def read_rules(
    task: str,
    rules: Iterable[tuple[RuleCondition | str, str | None]],
    *,
    context: Mapping[str, Type],
) -> tuple[Rule, ...]:
    """Return the rules of a task; a condition that has its tree is not parsed.

    Args:
        task: its name, for errors.
        rules: (condition, pool) of each, in order.
        context: what an app may tell of a call, by name and type.

    Raises:
        ConfigError: a condition cannot be read, or a name of the context is a signal's.

    """
    names = names_of(context)
    return tuple(
        Rule(read_condition(each, names, what=f"The condition of rule {at} of task {task}"), pool)
        for at, (each, pool) in enumerate(rules, start=1)
    )


def read_condition(
    written: RuleCondition | str, names: Mapping[str, Type], *, what: str
) -> Condition:
    """Return a condition from its tree, or from its text where there is none.

    Raises:
        ConfigError: it is none over these names.

    """
    if isinstance(written, str):
        return parse(written, names, what=what)
    if written.tree is None:
        return parse(written.text, names, what=what)
    return read_tree(written.tree, names, what=what)


def names_of(context: Mapping[str, Type]) -> dict[str, Type]:
    """Return what conditions may look at, by name and type.

    Args:
        context: what an app may tell of a call.

    Raises:
        ConfigError: a name of the context is a signal's.

    """
    names: dict[str, Type] = dict.fromkeys(SIGNALS, "number")
    both = sorted(names.keys() & context.keys())
    if both:
        raise ConfigError(
            f"The context declares {', '.join(both)}, which every condition knows as a signal.",
            hint="Give it another name.",
        )
    return names | dict(context)
