"""From an entrant to its running process."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.contestant import Contestant, Together

from sidewinder.testing import TINY
from tables.cases import Case, Entrant, Group

TOOLS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """How a whole run is made.

    Attributes:
        work: folder for model files that are kept between runs.
        llama_python: a Python with llama-cpp-python, gguf, torch and sidewinder; None leaves
            llama.cpp's sections out.
        cores: those that stand for "0", "1", ... of the entrants.
        tiny: tiny models and loads: whether everything works, not how fast.
    """

    work: Path
    llama_python: str | None = None
    cores: tuple[str, ...] = ("0", "1")
    tiny: bool = False

    def request(self, case: Case) -> dict[str, Any]:
        """The load of a case."""
        if not self.tiny:
            return dict(case.request)
        return {
            "prompt": min(case.prompt, 9),
            "new": min(case.new, 2),
            "batch": min(case.batch, 2),
        }

    def rounds(self, case: Case) -> int:
        """Most rounds of a case."""
        return 1 if self.tiny else case.rounds

    def shape(self, name: str) -> str:
        """The name of a published shape, or a folder with a tiny model of its family."""
        if not self.tiny:
            return name
        families = sorted(TINY, key=len, reverse=True)
        family = next(f for f in families if name.startswith(f.replace("_", "-")))
        folder = self.work / f"tiny-{family}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(TINY[family]))
        return str(folder)

    def on(self, cores: str) -> str:
        """Cores of a section as cores of this machine."""
        return ",".join(self.cores[int(core)] for core in cores.split(","))


def start(entrant: Entrant, group: Group, settings: Settings) -> Contestant | Together:
    """Start an entrant; several processes if it has several sets of cores."""
    command = command_of(entrant, group, settings)
    env = {"PYTHONPATH": str(TOOLS)}
    members = [Contestant(command, settings.on(cores), env) for cores in entrant.cores]
    return members[0] if len(members) == 1 else Together(members)


def command_of(entrant: Entrant, group: Group, settings: Settings) -> list[str]:
    """What to run; llama.cpp's model file is written first if it is not there."""
    if entrant.kind == "llama":
        assert settings.llama_python is not None
        model = _gguf(group.shape, entrant.options[0], settings)
        threads = str(len(entrant.cores[0].split(",")))
        return [
            settings.llama_python,
            "-m",
            "peers.run_llama_cpp",
            str(model),
            "--threads",
            threads,
        ]
    command = [sys.executable, "-m", f"peers.run_{entrant.kind}", settings.shape(group.shape)]
    layers = group.n_layers
    if entrant.kind != "machine" and layers is not None and not settings.tiny:
        command += ["--layers", str(layers)]
    return [*command, *entrant.options]


def _gguf(shape: str, kind: str, settings: Settings) -> Path:
    path = settings.work / f"{Path(settings.shape(shape)).name}-{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        command = [
            str(settings.llama_python),
            "-m",
            "peers.gguf_convert",
            settings.shape(shape),
            kind,
        ]
        subprocess.run([*command, str(partial)], check=True, cwd=TOOLS)
        partial.rename(path)
    return path
