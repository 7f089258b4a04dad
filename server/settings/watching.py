"""What the command that watches a server can be told."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from server.settings.common import CommandSettings


class WatchSettings(BaseSettings):
    """The server to watch"""

    url: str = Field("http://127.0.0.1:8000", description="where the server listens")
    api_key: SecretStr | None = Field(None, description="bearer key, where the server wants one")
    once: bool = Field(False, description="print one picture and end, into a pipe too")


class TopSettings(WatchSettings, CommandSettings):
    """Watch a running server in the terminal: its variants, speed, latency, queue and memory; q ends."""
