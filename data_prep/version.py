"""The version of this project."""

import tomllib

from data_prep.calls import ROOT


def project_version() -> str:
    """Return the version of zerobert, installed or not."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text("utf-8"))["project"]["version"]
    import importlib.metadata

    return importlib.metadata.version("zerobert")
