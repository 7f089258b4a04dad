"""Everything that can be set, once: a YAML file, then SECATEUR_* variables, then flags, each over the last.

The flags are made from these classes by server/cli.py; docs/reference/settings.md is held to them by a test.
Imports neither torch nor transformers, so that `secateur --help` answers at once.
"""

from server.settings.commands import (
    COMMANDS,
    groups,
    load_settings,
    unknown_variables,
)
from server.settings.common import (
    ENV_PREFIX,
    CommandSettings,
    CommonSettings,
    ProfiledSettings,
    RankingSettings,
)
from server.settings.fields import (
    DEFAULT_NUM_PROMPTS,
    DEFAULT_SEED,
    AllocationName,
    ScoreName,
)
from server.settings.judging import (
    EvalSettings,
    StudySettings,
)
from server.settings.making import (
    CompareSettings,
    CompensateSettings,
    ExportSettings,
    ProfileSettings,
    RankSettings,
)
from server.settings.recovery import (
    RecoverSettings,
)
from server.settings.serving import (
    HttpSettings,
    ServeSettings,
)
from server.settings.sources import (
    SettingsError,
)
from server.settings.watching import (
    TopSettings,
)

__all__ = [
    "COMMANDS",
    "DEFAULT_NUM_PROMPTS",
    "DEFAULT_SEED",
    "ENV_PREFIX",
    "AllocationName",
    "CommandSettings",
    "CommonSettings",
    "CompareSettings",
    "CompensateSettings",
    "EvalSettings",
    "ExportSettings",
    "HttpSettings",
    "ProfileSettings",
    "ProfiledSettings",
    "RankSettings",
    "RankingSettings",
    "RecoverSettings",
    "ScoreName",
    "ServeSettings",
    "SettingsError",
    "StudySettings",
    "TopSettings",
    "groups",
    "load_settings",
    "unknown_variables",
]
