"""`ledger`: the table, and the way of a ledger from one node to another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from agent.ctl.exits import Exit
from tests.api.fake_node import make_measurement
from tests.ctl.conftest import Invoke, Served


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("   ") if cell.strip()]


def test_each_term_is_shown_as_predicted_and_as_measured_over_all_starts(ctl: Invoke, served: Served) -> None:
    heading, *lines = ctl("ledger").stdout.splitlines()

    assert cells(heading)[:4] == ["MODEL", "ENGINE", "LIMITS", "DEVICE"]
    assert [cells(line)[2:9] for line in lines] == [
        ["4 x 2048", "host", "weights", "28.0 MiB", "28.0 MiB", "+0.0%", "2"],
        ["4 x 2048", "host", "repacked weights", "-", "7.0 MiB", "-", "2"],
        ["4 x 2048", "0 NVIDIA H200", "weights", "92.0 MiB", "92.0 MiB", "+0.0%", "2"],
        ["4 x 2048", "0 NVIDIA H200", "context", "512.0 MiB", "401.0 MiB", "+27.7%", "2"],
    ]
    assert {cells(line)[-1] for line in lines} == {"here"}
    assert ctl("ledger", "ls").stdout == ctl("ledger").stdout
    assert "10434" in ctl("ledger", "ls", "-o", "wide").stdout


def test_imported_measurements_have_lines_of_their_own(ctl: Invoke, served: Served) -> None:
    served.node.measurement_list.append(make_measurement(7, imported=True, host="elsewhere"))

    lines = ctl("ledger").stdout.splitlines()[1:]
    assert [cells(line)[-1] for line in lines] == ["here"] * 4 + ["elsewhere"] * 4


def test_other_limits_have_lines_of_their_own(ctl: Invoke, served: Served) -> None:
    row = make_measurement(3)
    served.node.measurement_list.append(replace(row, key=replace(row.key, max_model_len=512)))

    assert len(ctl("ledger").stdout.splitlines()) == 9


def test_an_empty_ledger_is_said_on_stderr(ctl: Invoke, served: Served) -> None:
    served.node.measurement_list.clear()

    done = ctl("ledger")
    assert (done.exit_code, done.stdout) == (Exit.OK, "")
    assert done.stderr.startswith("nothing was measured yet")
    assert json.loads(ctl("ledger", "-o", "json").stdout) == {"measurements": []}


def test_what_is_exported_is_what_import_sends(ctl: Invoke, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"

    done = ctl("ledger", "export", str(file))
    assert (done.exit_code, done.stdout, done.stderr) == (Exit.OK, "", f"2 measurements written to {file}\n")
    data = json.loads(file.read_text())
    assert data == json.loads(ctl("ledger", "export").stdout) == json.loads(ctl("ledger", "-o", "json").stdout)
    done = ctl("ledger", "import", str(file))
    assert done.stdout == "1 measurements imported, 1 known already, 2 beyond what a node keeps\n"
    assert served.node.imported == data
    answer = json.loads(ctl("ledger", "import", "-", "-o", "json", input=file.read_text()).stdout)
    assert answer == {"added_count": 1, "known_count": 1, "dropped_count": 2}


def test_what_is_no_json_is_refused_before_anything_is_sent(ctl: Invoke, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    for text in ("{", "[]", "NaN", "[" * 100_000):
        file.write_text(text)
        done = ctl("ledger", "import", str(file))
        assert done.exit_code == Exit.USAGE
        assert str(file) in done.stderr
    assert ctl("ledger", "import", str(tmp_path / "none")).exit_code == Exit.NOT_FOUND
    assert ctl("ledger", "export", str(tmp_path / "no" / "folder")).exit_code == Exit.USAGE
    assert served.node.imported == {}
