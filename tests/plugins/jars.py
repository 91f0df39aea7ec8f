"""Java programs of the tests: folders of jars that Maven fills once, kept between runs.

`folder("")` is the broker with its tools, `folder("connect")` Kafka Connect, `folder("debezium")` the connector. They
lie in $WALVEC_TEST_KAFKA_JARS, else in ~/.cache/walvec; the name carries a digest of the pom, so that a changed pom
never touches jars that somebody runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "kafka"
LOGGING = HERE / "log4j2.properties"
JVM = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto", "-Djava.awt.headless=true")
BRIEF = (*JVM, "-XX:TieredStopAtLevel=1")
"""For what is over before optimised code would pay: starts with half of the work."""


class Unavailable(Exception):
    """No Java or no jars here; the text says how to get them."""


def skip_or_fail(error: Unavailable) -> None:
    """Where CI=true a missing broker is a failure; at a desk the test is skipped, and says so."""
    if os.environ.get("CI") == "true":
        raise error
    pytest.skip(f"NO KAFKA BROKER, this goes untested: {error}")


def java(
    classpath: Sequence[Path], *, heap: str = "384m", options: Sequence[str] = BRIEF, level: str = "warn"
) -> list[str]:
    """The start of a command line; a main class and its arguments follow. Logs go to standard error."""
    program = shutil.which("java")
    if program is None:
        raise Unavailable("there is no java; install a Java 17 runtime (apt-get install openjdk-17-jre-headless)")
    jars = os.pathsep.join(f"{folder}/*" for folder in classpath)
    return [
        program,
        f"-Xmx{heap}",
        *options,
        f"-Dlog4j2.configurationFile={LOGGING}",
        f"-Dwalvec.log={level}",
        "-cp",
        jars,
    ]


def folder(name: str) -> Path:
    """The folder of tests/kafka/<name>/pom.xml, filled at the first call. Raises Unavailable."""
    pom = HERE / name / "pom.xml"
    text = pom.read_text(encoding="utf-8")
    version = re.search(r"<version>([^<]+)</version>", text)
    assert version is not None
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "walvec"
    cache = Path(os.environ.get("WALVEC_TEST_KAFKA_JARS") or cache)
    found = cache / f"{name or 'kafka'}-{version[1]}-{digest}"
    if found.is_dir():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{found.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_dir():
            _fill(pom, found)
    return found


def _fill(pom: Path, found: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable(f"{found} is missing and there is no mvn to fill it; apt-get install maven, and run again")
    made = Path(tempfile.mkdtemp(prefix=f".{found.name}-", dir=found.parent))
    try:
        done = subprocess.run(
            [
                *(maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"),
                *("-DincludeScope=runtime", f"-DoutputDirectory={made / 'jars'}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"Maven could not fetch the jars of {pom}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        (made / "jars").rename(found)
    finally:
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    for wanted in ("", "connect", "debezium"):
        print(folder(wanted))  # noqa: T201
