"""A conversation as the tokens of a prompt, by the model's own chat template.

Guarantees: only the template's own text becomes special tokens; what a message holds is read as
text, also where it spells a special token. Templates run in Jinja's immutable sandbox. So that both
are kept apart, a template sees marks in place of contents; one that changes what a message says, or
looks into it, changes or sees a mark.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge.backends.base import Decoder
from edge.errors import InputError
from edge_sync.pool.asked import Message


@dataclass(frozen=True, slots=True)
class Chat:
    """A template with what it may use.

    Attributes:
        template: in Jinja; empty for the contents of the messages, one a line.
        bos, eos: how the model writes its first and last token.

    """

    template: str
    bos: str = ""
    eos: str = ""

    def tokens(self, messages: Sequence[Message], decoder: Decoder) -> list[int]:
        """Return the prompt.

        Raises:
            InputError: the template refuses the conversation, or a text is no Unicode.

        """
        mark = f"m{secrets.token_hex(8)}n"
        parts = re.split(rf"{mark}(\d+)x", self._rendered(messages, mark))
        # The template writes the first token itself where the model wants one.
        first = bool(self.template and self.bos and parts[0].startswith(self.bos))
        tokens: list[int] = [] if first else decoder.tokenize("", add_bos=True)
        for at, part in enumerate(parts):
            ours = at % 2 == 0
            text = part if ours else messages[int(part)].content
            tokens += decoder.tokenize(text, add_bos=False, parse_special=ours)
        return tokens

    def _rendered(self, messages: Sequence[Message], mark: str) -> str:
        marks = [f"{mark}{at}x" for at in range(len(messages))]
        if not self.template:
            return "\n".join(marks)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        turns = [
            {"role": each.role, "content": text} for each, text in zip(messages, marks, strict=True)
        ]
        try:
            return environment.from_string(self.template).render(
                messages=turns, add_generation_prompt=True, bos_token=self.bos, eos_token=self.eos
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"The model's template does not take this conversation: {str(error)[:200]}.",
                hint="Begin with a message of the user, and let the roles take turns.",
            ) from error


def _refuse(message: str) -> None:
    raise TemplateError(message)
