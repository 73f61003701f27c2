"""The version of this project, and the identity of its code."""

import hashlib
import tomllib

from data_prep.calls import ROOT


def project_version() -> str:
    """Return the version of zerobert, installed or not."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text("utf-8"))["project"]["version"]
    import importlib.metadata

    return importlib.metadata.version("zerobert")


def code_sha256() -> str:
    """Return the identity of the code that runs: a version says nothing of a file that was edited on one node."""
    digest = hashlib.sha256()
    for path in sorted(path for package in ("data_prep", "pretrain") for path in (ROOT / package).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
