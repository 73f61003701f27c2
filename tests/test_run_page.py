"""docs/run.md names every field and event that the code can write, and none besides."""

import ast

from data_prep.cli import ROOT
from pretrain.monitor.lines import TrainLine
from pretrain.run_facts import FAILED
from pretrain.run_record import RunRecord
from pretrain.state import RunState
from tests.run_page import described, file_fields


def test_every_event_is_described():
    calls = (
        node
        for path in ROOT.glob("pretrain/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event"
    )
    names = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    assert described('**`"kind": "event"`**') == names | {FAILED}


def test_every_field_of_training_is_described():
    assert described('**`"kind": "train"`**') == TrainLine.__annotations__.keys() - {"kind", "step", "clock"}


def test_every_field_of_the_record_is_described():
    assert described("## config.json") == {*RunRecord.__annotations__}


def test_every_field_of_the_state_is_described():
    assert file_fields("state.json") == RunState(averaged=1).to_json().keys() | {"loss_scaler"}
