"""The root of every error that Secateur raises on purpose, and those of models and profiles.

SecateurError
├── ModelError                  a checkpoint that cannot be read or served
│   └── UnsupportedModelError   ... because of its architecture or one of its settings
├── ProfileError                a profile that cannot be read or built
│   └── StaleProfileError       ... because it was measured on something else
├── RankingError                a ranking that cannot be read, written or used
├── SparsityError               a sparsity that is none
├── DeltaError                  a delta that cannot be read, built or used
│   ├── ForeignDeltaError       ... because it was made for another model, ranking or width
│   └── NothingGainedError      ... because training it led nowhere
├── ExportError                 a checkpoint that cannot be written
├── MemoryBoundError            work that takes more memory than it may
└── RequestError                (server/errors.py) what a client is told over HTTP
"""


class SecateurError(Exception):
    """Base of all deliberate errors. The message names the limit, the value and the way out."""


class ModelError(SecateurError):
    """A checkpoint is missing, incomplete or damaged."""


class UnsupportedModelError(ModelError):
    """The checkpoint is sound, but this architecture or setting is not served."""


class ProfileError(SecateurError):
    """A profile is missing, damaged or impossible to build."""


class StaleProfileError(ProfileError):
    """A profile's fingerprints differ from those of the model, tokenizer or data in use."""


class RankingError(SecateurError):
    """A ranking's file is missing, damaged or of another model, or cannot be written."""


class SparsityError(SecateurError, ValueError):
    """A sparsity outside 0 <= s < 1."""


class ExportError(SecateurError):
    """A variant cannot be written where it was asked for."""


class MemoryBoundError(SecateurError):
    """Something takes more memory at the least than it was allowed."""


class DeltaError(SecateurError):
    """A delta is missing, damaged or impossible to build."""


class NothingGainedError(DeltaError):
    """A training never came nearer to the dense model than it was at the start."""


class ForeignDeltaError(DeltaError):
    """A delta was made for another network than the one in use."""
