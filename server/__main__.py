"""The `secateur` command. Imports torch only once there is work to do, so that --help answers at once."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from pruning.errors import SecateurError
from pruning.garbage import no_garbage_collection
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
    with no_garbage_collection():  # 400,000 objects, all of which stay: it would cost half a second
        command = _imported(settings)
    if isinstance(settings, CommonSettings):
        from server.threads import set_threads

        set_threads(settings.threads)
    told = command()
    if told is not None:
        print(told)


def _imported(settings: CommandSettings) -> Callable[[], str | None]:
    """What the settings ask for, and nothing else, ready to be called; what it returns is printed."""
    if isinstance(settings, TopSettings):
        from server.commands.top import top

        return lambda: top(settings)
    if isinstance(settings, ServeSettings):
        from server.commands.serve import serve

        return lambda: serve(settings)
    if isinstance(settings, ProfileSettings):
        from server.loading.profiles import measure_profile, profile_summary

        return lambda: profile_summary(*measure_profile(settings))
    if isinstance(settings, CompensateSettings):
        from server.commands.compensating import delta_summary, fit_delta

        return lambda: delta_summary(*fit_delta(settings))
    if isinstance(settings, RecoverSettings):
        from server.commands.recovering import recover_variants

        return lambda: recover_variants(settings)
    if isinstance(settings, RankSettings):
        from server.commands.stepping import make_ranking, ranking_summary

        return lambda: ranking_summary(settings.out, make_ranking(settings))
    if isinstance(settings, CompareSettings):
        from server.commands.comparing import compare_rankings

        return lambda: compare_rankings(settings)
    if isinstance(settings, ExportSettings):
        from server.commands.exporting import export, export_summary

        return lambda: export_summary(*export(settings))
    if isinstance(settings, EvalSettings):
        from eval.evaluation import summary
        from server.commands.evaluating import evaluate

        return lambda: summary(evaluate(settings))
    assert isinstance(settings, StudySettings)
    from server.commands.evaluating import study

    return lambda: study(settings)


if __name__ == "__main__":
    sys.exit(main())
