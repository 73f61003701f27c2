"""The prediction of docs/cluster.md is what its script says, and fits what NVIDIA has published."""

from pathlib import Path

import pytest

from benchmarks.cluster_model import A100, PHASES, preparation_table, run_hours, step_seconds, step_table

PAGE = Path(__file__).parent.parent / "docs" / "cluster.md"


def test_the_page_has_the_tables_of_the_script():
    page = PAGE.read_text("utf-8")
    assert "\n".join(step_table()) in page
    assert "\n".join(preparation_table()) in page


def test_the_model_comes_near_to_nvidias_256_a100():
    assert step_seconds(A100, PHASES[0], 256) == pytest.approx(0.474, rel=0.1)
    assert run_hours(A100, 256) == pytest.approx(1.2, rel=0.1)
