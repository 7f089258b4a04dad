"""The process of `secateur serve`: settings in, a service until a signal comes.

What serves is put together in server/service.py.
"""

import gc
import logging
import os
import socket
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from server.loading.profiles import open_model
from server.service import assemble, load_model
from server.settings import ServeSettings, SettingsError
from server.shutdown import FLUSH_SECONDS, GracefulServer
from server.summary import summary

if TYPE_CHECKING:  # what it imports need not be installed
    from server.monitoring.tracing import Tracing

logger = logging.getLogger(__name__)

# Proxies keep idle connections for a minute, and send the next request on one that must not close just then.
KEEP_ALIVE_SECONDS = 75
# Who is believed where a request came from, whatever FORWARDED_ALLOW_IPS says: /admin may depend on it.
TRUSTED_PROXIES = "127.0.0.1,::1,::ffff:127.0.0.1"


def serve(settings: ServeSettings) -> None:
    """Serves until SIGTERM or SIGINT, and returns when what ran has ended.

    Raises:
        SecateurError: the settings, the model or the profile do not allow it.
        EngineDeadError: the engine died, and a supervisor may start the process anew.
    """
    if "SECATEUR_API_KEYS" in os.environ and not settings.api_keys:
        logger.warning("SECATEUR_API_KEYS is empty, which counts as not set: /v1 is open to all")
    with _bind(settings.host, settings.port) as listener:
        gc.freeze()  # what was imported stays: nobody need walk over it while the rest is loaded
        tracing = _tracing(settings)
        checkpoint = open_model(settings)
        loaded = load_model(settings, checkpoint)
        service = assemble(settings, loaded, tracing=tracing)
        gc.freeze()  # what was loaded as well: nor while tokens wait
        server = GracefulServer(
            uvicorn_config(service.app),
            service.generations,
            settings.shutdown_timeout_seconds,
            on_drain=service.drain,
            on_started=lambda: print(summary(settings, loaded, service.probing, listener), flush=True),
        )
        _listen(listener, settings)
        server.run(sockets=[listener])
    service.generations.engine.check_alive()


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    """How the app is served, whatever it listens on."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        forwarded_allow_ips=TRUSTED_PROXIES,
        lifespan="on",
    )


def _bind(host: str, port: int) -> socket.socket:
    """Before anything is loaded, so that a port in use is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error}): choose another --host or --port"
        ) from error
    return listener


def _listen(listener: socket.socket, settings: ServeSettings) -> None:
    """Another server may have come to listen there while the model was loaded."""
    try:
        listener.listen()
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port} any more ({error}): choose another --port"
        ) from error


def _tracing(settings: ServeSettings) -> "Tracing | None":
    if not settings.traces:
        return None
    try:
        from server.monitoring.tracing import open_tracing
    except ImportError as error:
        raise SettingsError(
            f"traces need OpenTelemetry ({error}): pip install 'secateur[otel]', or leave traces off"
        ) from error
    return open_tracing()
