"""The `secateur` command. Imports torch only once there is work to do, so that --help answers at once."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from pruning.errors import SecateurError
from server.cli import parse_arguments
from server.settings import (
    CommandSettings,
    CommonSettings,
    CompareSettings,
    CompensateSettings,
    EvalSettings,
    ExportSettings,
    ProfileSettings,
    RankSettings,
    RecoverSettings,
    ServeSettings,
    SettingsError,
    StudySettings,
    TopSettings,
    unknown_variables,
)

logger = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    try:
        settings = parse_arguments(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        # Until uvicorn takes over; a container's first process would ignore the signal otherwise.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for complaint in unknown_variables(os.environ):
            logger.warning(complaint)
        _run(settings)
    except SettingsError as error:
        print(f"secateur: {error}", file=sys.stderr)
        return EXIT_USAGE
    except SecateurError as error:
        print(f"secateur: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _run(settings: CommandSettings) -> None:
    if isinstance(settings, TopSettings):
        from server.commands.top import top

        top(settings)
    elif isinstance(settings, CommonSettings):
        _run_on_a_model(settings)


def _run_on_a_model(settings: CommonSettings) -> None:
    import torch

    from eval.evaluation import summary
    from server.commands.comparing import compare_rankings
    from server.commands.compensating import delta_summary, fit_delta
    from server.commands.evaluating import evaluate, study
    from server.commands.exporting import export
    from server.commands.recovering import recover_variants, recovery_summary
    from server.commands.serve import serve
    from server.commands.stepping import make_ranking
    from server.loading.profiles import measure_profile

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if isinstance(settings, ServeSettings):
        serve(settings)
    elif isinstance(settings, ProfileSettings):
        path, profile = measure_profile(settings)
        print(f"{path}\n  {profile.provenance.model_name}, {profile.provenance.task}, {profile.digest}")
    elif isinstance(settings, CompensateSettings):
        print(delta_summary(*fit_delta(settings)))
    elif isinstance(settings, RecoverSettings):
        print(recovery_summary(*recover_variants(settings)))
    elif isinstance(settings, RankSettings):
        saved = make_ranking(settings)
        print(f"{settings.out}\n  {saved.ranking.score}, {saved.provenance.task}, {saved.ranking.digest}")
    elif isinstance(settings, CompareSettings):
        print(compare_rankings(settings))
    elif isinstance(settings, ExportSettings):
        out, num_bytes = export(settings)
        print(f"{out}\n  {num_bytes:,} bytes of weights")
    elif isinstance(settings, EvalSettings):
        print(summary(evaluate(settings)))
    elif isinstance(settings, StudySettings):
        print(study(settings))


if __name__ == "__main__":
    sys.exit(main())
