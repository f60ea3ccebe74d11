"""The process that keeps the others waiting for its data is named, once, within the stated time."""

from nest_dist.cluster import pace


def run(found, waits, step_seconds, seconds, begun=0):
    """Each second all processes say what they have done; the lines that come of it."""
    lines = []
    for now in range(begun, begun + seconds):
        tick = int(now / step_seconds)
        for index, wait in enumerate(waits):
            found.add(index, float(now), tick, tick * wait)
        if line := found.slow(float(now)):
            lines.append(line)
    return lines


def test_a_process_whose_steps_take_twice_as_long_is_named_once():
    found = pace.Pace()
    (line,) = run(found, [0.0, 0.25, 0.0, 0.0], 0.5, 200)
    assert line == (
        "process 1 is slow: for 60 s each step waited 0.25 s for its data, the median 0.00 s; "
        "steps take 0.50 s and could take 0.25 s. Look at that host's processor, disk and network."
    )
    assert found.metrics == {
        "processes/step_seconds_slowest": 0.5,
        "processes/step_seconds_median": 0.5,
        "processes/data_wait_seconds_slowest": 0.25,
        "processes/data_wait_seconds_median": 0.0,
    }


def test_it_is_named_within_the_stated_time_and_again_when_it_was_well_meanwhile():
    found = pace.Pace()
    assert run(found, [0.0, 0.0], 0.5, 61) == []
    assert len(run(found, [0.0, 0.4], 0.5, 120, begun=61)) == 1
    assert run(pace.Pace(), [0.0, 0.4], 0.5, 60) == []


def test_all_that_wait_alike_are_not_slow():
    assert run(pace.Pace(), [0.4, 0.4, 0.41], 0.5, 200) == []


def test_one_process_has_no_pace():
    found = pace.Pace()
    assert run(found, [0.4], 0.5, 200) == []
    assert found.metrics == {}


def test_training_that_stands_still_has_none():
    found = pace.Pace()
    for now in range(200):
        found.add(0, float(now), 7, 0.0)
        found.add(1, float(now), 7, float(now))
        assert found.slow(float(now)) == ""
