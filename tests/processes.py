"""Python in a process of its own, which has imported and made nothing yet."""

import subprocess
import sys


def printed_by(script: str) -> str:
    """Its standard output. Raises CalledProcessError where it fails."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout
