"""docker-compose.yml and the Dockerfile as values, for the tests that hold them and those that run what they say.

Only what our own files use of both formats is understood; tests/unit/test_compose.py holds the files to that.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"
VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<rest>[^}]*))?\})")


class Missing(Exception):
    """A variable that the file requires is not set; the text is the file's own message."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """`${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$` in every text, as `docker compose` does it.

    Raises Missing.
    """
    if isinstance(value, dict):
        return {key: interpolate(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        found = variables.get(match["name"], "")
        if found or match["how"] is None:
            return found
        if match["how"] == ":?":
            raise Missing(f"{match['name']}: {match['rest']}")
        return match["rest"]

    return VARIABLE.sub(replace, value)


def variables(path: Path = EXAMPLE) -> dict[str, str]:
    """What a .env file sets."""
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


@dataclass(frozen=True)
class Image:
    """A Dockerfile: (instruction, value) of each of its stages, the arguments before the first one apart."""

    stages: Sequence[Sequence[tuple[str, str]]]

    @staticmethod
    def read(path: Path = ROOT / "Dockerfile") -> Image:
        stages: list[list[tuple[str, str]]] = []
        for part in DockerfileParser(fileobj=io.BytesIO(path.read_bytes())).structure:
            if part["instruction"] == "FROM":
                stages.append([])
            if stages and part["instruction"] != "COMMENT":
                stages[-1].append((part["instruction"], part["value"]))
        return Image(stages)

    def values(self, instruction: str, stage: int = -1) -> list[str]:
        return [value for name, value in self.stages[stage] if name == instruction]

    @cached_property
    def environment(self) -> dict[str, str]:
        words = [word for value in self.values("ENV") for word in shlex.split(value)]
        return dict(word.split("=", 1) for word in words)

    @cached_property
    def entrypoint(self) -> list[str]:
        """Raises unless it is in the exec form, without which a signal would reach a shell."""
        (value,) = self.values("ENTRYPOINT")
        found: list[str] = yaml.safe_load(value)
        assert isinstance(found, list), f"ENTRYPOINT {value}: write it as a JSON list"
        return found


def context() -> list[Path]:
    """What .dockerignore lets into the image: it ignores everything, then names what it does not ignore."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return [ROOT / line[1:] for line in lines if line.startswith("!")]


def install(image: Image, directory: Path, python: str) -> Path:
    """Runs the build stage's own lines with another place for /opt/walvec; returns that place."""
    build, place, tools = directory / "build", directory / "opt", directory / "tools"
    build.mkdir(parents=True)
    subprocess.run([python, "-m", "venv", tools], check=True)
    for instruction, value in image.stages[0]:
        if instruction == "COPY":
            *sources, _ = value.split()
            for source in context() if sources == ["."] else [ROOT / s for s in sources]:
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, build / source.name, ignore=ignored, dirs_exist_ok=True)
                else:
                    shutil.copy(source, build)
        elif instruction == "RUN":
            line = value.replace("/opt/walvec", str(place))
            quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_QUIET": "1"}
            path = {"PATH": f"{tools / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home())}
            done = subprocess.run(
                ["sh", "-c", line], cwd=build, env=path | quiet, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"RUN {value}\n{done.stdout}{done.stderr}"
    return place


@dataclass(frozen=True)
class Service:
    """One service of the file, after its variables are put in."""

    name: str
    definition: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        found = self.definition.get("environment", {})
        assert all(isinstance(value, str) for value in found.values()), (
            f"{self.name}: quote what YAML would not read as text"
        )
        return dict(found)

    @property
    def ours(self) -> bool:
        return "build" in self.definition

    @property
    def replicas(self) -> int:
        found: int = self.definition.get("deploy", {}).get("replicas", 1)
        return found

    @property
    def grace_seconds(self) -> float:
        found: str = self.definition.get("stop_grace_period", "10s")
        return float(found.removesuffix("s"))

    @property
    def check(self) -> list[str]:
        """The health check's command, as its container runs it."""
        kind, *command = self.definition["healthcheck"]["test"]
        assert kind == "CMD", f"{self.name}: a health check without a shell"
        return command

    @property
    def mounts(self) -> dict[str, Path]:
        """Place in the container -> file or folder of the repository; named volumes are left out."""
        found = {}
        for volume in self.definition.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                found[target] = (ROOT / source).resolve()
        return found


def load(given: Mapping[str, str] | None = None) -> dict[str, Service]:
    """The services of docker-compose.yml, with `given` (default: .env.example) for its variables. Raises Missing."""
    document = interpolate(yaml.safe_load(FILE.read_text()), variables() if given is None else given)
    return {name: Service(name, definition) for name, definition in document["services"].items()}
