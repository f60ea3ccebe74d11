import pytest

from nest_dist.base import failures
from nest_dist.experiment import resume


def test_a_checkpoint_of_streamed_data_is_refused_in_one_line():
    resume._require_no_stream({"data_positions": {}})
    with pytest.raises(
        failures.BadInput, match=r"is of a run on streamed data, .*; go on with the version that w"
    ) as refusal:
        resume._require_no_stream({"data_positions": {"0": {"epoch": 0, "row": 16}}})
    assert "\n" not in str(refusal.value)
