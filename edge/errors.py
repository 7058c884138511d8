"""Every error that edge raises.

    EdgeError
      ConfigError            a setting, a pack or a folder is wrong
      InputError             the text or the arguments of one call are wrong
      ModelError
        LoadError            a model file is missing, truncated or of the wrong kind
        IntegrityError       a file does not match its digest
        GenerationError      a loaded model failed on this input
        DeviceFallback       the asked-for device is not the one that would run
        Busy                 the queue in front of a model is full
      CloudError
        CloudTimeout         no answer before the deadline: it may still have been billed
        RateLimited          the pool asked for a pause
        CloudServerError     the pool failed, or closed the connection before an answer
        CircuitOpen          the pool failed too often; it is left alone for a while
        CloudRejected        the pool refused the request itself
        LeaseRefused         the pool's gateway takes nothing more from a lease
        AnswerLost           it was answered and billed before; the answer is gone
      BudgetExceeded         the worst-case cost does not fit what is left
      StoreError             the state folder cannot be read or written
      PolicyError
        SignatureInvalid, VersionRollback, PolicyExpired
      GuardError
        ToolDenied, RedactionFailed, UnsafeOutput
      SyncError
        HubUnreachable       try again
        HubDistrusted        do not

A leaf says whether trying again can help (``retryable``) and what to do (``hint``, one sentence).
Foreign exceptions are translated in the adapter that meets them and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeError(Exception):
    """The root of the tree.

    Args:
        message: what is wrong and why, naming the thing.
        hint: the remedy in one sentence; the class's own hint where none is given.

    """

    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = "Run `edge doctor` to see what is wrong."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(EdgeError):
    """A setting, a pack or a folder is wrong."""

    default_hint = "Correct the named setting."


class InputError(EdgeError):
    """The text or the arguments of one call are wrong."""

    default_hint = "Correct the input and call again."


class ModelError(EdgeError):
    """A model cannot be used."""


class LoadError(ModelError):
    """A model file is missing, truncated or of the wrong kind."""

    default_hint = "Run `edge models verify` and rebuild or reinstall the model."


class IntegrityError(ModelError):
    """A file does not match its digest and is not used."""

    default_hint = "Reinstall the file from its source; never edit the digest."


class GenerationError(ModelError):
    """A loaded model failed on this input."""

    default_hint = "Shorten the input or choose another model."


class DeviceFallback(ModelError):
    """The asked-for device is not the one that would run."""

    default_hint = "Allow the fallback, or install an engine built for the device."


class Busy(ModelError):
    """The queue in front of a model is full.

    Attributes:
        retry_after_s: after how many seconds there may be room; ``None`` where unknown.

    """

    retryable = True
    default_hint = "Try again shortly."

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        if hint is None and retry_after_s is not None:
            hint = f"Try again in {retry_after_s:g} s."
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class CloudError(EdgeError):
    """A cloud pool did not answer a request.

    Attributes:
        maybe_billed: whether the provider may have charged for the attempt. Only where this is
            ``False`` is a hold on the budget released or the request sent again.

    """

    default_maybe_billed: ClassVar[bool] = False

    def __init__(
        self, message: str, *, hint: str | None = None, maybe_billed: bool | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.maybe_billed = self.default_maybe_billed if maybe_billed is None else maybe_billed


class CloudTimeout(CloudError):
    """No answer before the deadline: it may still have been billed."""

    retryable = True
    default_maybe_billed = True
    default_hint = "Raise the deadline or try again later."


class RateLimited(CloudError):
    """The pool asked for a pause."""

    retryable = True
    default_hint = "Slow down or raise the quota."


class CloudServerError(CloudError):
    """The pool failed, or closed the connection before an answer."""

    retryable = True
    default_maybe_billed = True
    default_hint = "Try again later or name a second pool."


class CircuitOpen(CloudError):
    """The pool failed too often; it is left alone for a while."""

    retryable = True
    default_hint = "Wait for the cool-down to pass."


class CloudRejected(CloudError):
    """The pool refused the request itself; the same request will fail again."""

    default_hint = "Check the pool's key, model name and limits."


class LeaseRefused(CloudError):
    """The pool's gateway takes nothing more from a lease; nothing was billed.

    Attributes:
        code: why, as the gateway calls it: ``sealed``, ``fenced``, ``exhausted``.

    """

    retryable = True
    default_hint = "Sync with the fleet's hub for another lease."

    def __init__(self, message: str, *, code: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class AnswerLost(CloudError):
    """The pool answered and billed this request before; the answer is not kept any more.

    Attributes:
        cost_microusd: what was billed.

    """

    default_hint = "Ask anew only if a second bill is all right: name the task to retry it."

    def __init__(self, message: str, *, cost_microusd: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, maybe_billed=True)
        self.cost_microusd = cost_microusd


class BudgetExceeded(EdgeError):
    """The worst-case cost does not fit what is left of the budget."""

    default_hint = "Raise the cap or wait for the next period."


class StoreError(EdgeError):
    """The state folder cannot be read or written."""

    default_hint = "Free some space and make the state folder writable, or pass another `state`."


class PolicyError(EdgeError):
    """A policy is not acceptable."""


class SignatureInvalid(PolicyError):
    """A policy's signature does not verify."""

    default_hint = "Fetch the policy again from the hub."


class VersionRollback(PolicyError):
    """A policy is older than the one in force."""

    default_hint = "Publish a newer version."


class PolicyExpired(PolicyError):
    """A policy is past its expiry."""

    default_hint = "Sync with the hub."


class GuardError(EdgeError):
    """A guard stopped the task."""


class ToolDenied(GuardError):
    """A tool call is not allowed."""

    default_hint = "Allow the tool in the policy."


class RedactionFailed(GuardError):
    """Private spans could not be removed for certain, so nothing was sent."""

    default_hint = "Answer on the device, or allow `raw` for this task."


class UnsafeOutput(GuardError):
    """An answer breaks the output policy."""

    default_hint = "Review the answer before use."


class SyncError(EdgeError):
    """A sync with the hub failed."""


class HubUnreachable(SyncError):
    """The hub did not answer; try again."""

    retryable = True
    default_hint = "Work continues offline; the next sync tries again."


class HubDistrusted(SyncError):
    """The hub sent something that fails verification; do not try again."""

    default_hint = "Ask the fleet admin; the old policy stays in force."
