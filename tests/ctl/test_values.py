"""Messages as JSON."""

from __future__ import annotations

from agent.api.structs import struct_from_dict
from agent.ctl.values import plain
from agent.v1 import agent_pb2 as pb


def test_integers_of_64_bits_are_numbers() -> None:
    assert plain(pb.Progress(step="loading", done_bytes=2**40)) == {
        "step": "loading",
        "done_bytes": 2**40,
        "total_bytes": 0,
    }


def test_an_optional_field_that_is_not_set_is_left_out() -> None:
    assert plain(pb.Granted(max_num_seqs=4)) == {"max_num_seqs": 4, "model": ""}


def test_a_resource_has_its_id_beside_its_name() -> None:
    instance = plain(pb.Instance(name="deployments/chat/instances/i-1", deployment="deployments/chat"))
    assert (instance["name"], instance["id"]) == ("deployments/chat/instances/i-1", "i-1")


def test_a_struct_is_plain_data_with_sorted_keys_and_whole_numbers() -> None:
    data = {"b": [1, {"d": 2.5, "c": None}], "a": True}
    spec = plain(pb.Deployment(spec=struct_from_dict(data)))["spec"]
    assert repr(spec) == "{'a': True, 'b': [1, {'c': None, 'd': 2.5}]}"


def test_times_are_rfc_3339() -> None:
    event = pb.Event(seq=1)
    event.time.FromMilliseconds(1_700_000_000_250)
    assert plain(event)["time"] == "2023-11-14T22:13:20.250Z"


def test_an_enum_is_its_name_and_a_number_where_only_a_newer_daemon_knows_it() -> None:
    deployment = pb.Deployment(phase=pb.PHASE_READY)
    assert plain(deployment)["phase"] == "PHASE_READY"
    deployment.MergeFromString(b"\x38\x63")  # field 7, value 99
    assert plain(deployment)["phase"] == 99
