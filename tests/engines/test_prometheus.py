"""Reading what engines measure, in Prometheus' text format."""

from __future__ import annotations

import pytest

from agent.engines.prometheus import labels, totals

TEXT = r"""# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} 9"} 2.0
vllm:num_requests_running{engine="1",model_name="b\"\\c"} 3.0 1395066363000
vllm:num_requests_running_by_reason{engine="0"} 77
plain_total 1.5e3
odd 12abc
endless +Inf
none NaN
info{path="C:\\new",text="two\nlines",block="16"} 1
info{block="32"} 1
"""


def test_a_metric_is_summed_over_its_labels_and_no_other_name_is_taken_for_it() -> None:
    assert totals(TEXT, "vllm:num_requests_running") == {"vllm:num_requests_running": 5.0}


def test_several_metrics_are_read_at_once() -> None:
    assert totals(TEXT, "plain_total", "vllm:num_requests_running", "absent") == {
        "plain_total": 1500.0,
        "vllm:num_requests_running": 5.0,
    }


@pytest.mark.parametrize("name", ["odd", "endless", "none", "absent", "plain", "vllm:num"])
def test_what_is_no_number_is_not_known(name: str) -> None:
    assert totals(TEXT, name) == {}


def test_labels_are_read_of_each_sample_with_their_escapes() -> None:
    assert labels(TEXT, "info") == ({"path": "C:\\new", "text": "two\nlines", "block": "16"}, {"block": "32"})
    assert labels(TEXT, "plain_total") == ({},)
    assert labels(TEXT, "absent") == ()


def test_a_page_that_is_no_metrics_has_none() -> None:
    assert totals("<html>vllm:num_requests_running 3</html>", "vllm:num_requests_running") == {}
