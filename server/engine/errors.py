"""Why the engine refuses a request. Knows nothing of HTTP; server/errors.py says what a client is told."""

from pruning.errors import SecateurError


class EngineError(SecateurError):
    """Base of the engine's refusals."""


class QueueFullError(EngineError):
    """As many requests wait as may."""


class PromptTooLongError(EngineError):
    """Prompt, or prompt and answer, do not fit the model's context."""


class EngineDeadError(EngineError):
    """The engine's thread has ended with an error; nothing can be generated any more."""


class EngineConfigError(EngineError):
    """The engine's limits contradict each other or the model."""


class KernelsUnavailableError(EngineError):
    """The compiled kernels cannot be used; torch computes instead. Never reaches a client."""
