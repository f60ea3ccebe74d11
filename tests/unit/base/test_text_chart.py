from nest_dist.base import text_chart


def test_a_line_rises_from_nothing_to_the_largest_value():
    title, *rows, base, axis = text_chart.draw("rate", [0, 1, 2, 3, 4], 1000).splitlines()
    assert title == "rate"
    assert len(rows) == text_chart.ROWS
    assert rows[0].split("|")[0].strip() == "4"
    assert rows[5].split("|")[0].strip() == "2"
    bars = [row.split("|")[1] for row in rows]
    assert bars[0].strip(" ") == bars[0][-len(bars[0].strip(" ")) :]
    assert len(bars[0]) == len(bars[-1]) == text_chart.COLUMNS
    assert bars[-1][0] == " "
    assert bars[-1].endswith("█" * 20)
    assert base.endswith("-" * text_chart.COLUMNS)
    assert axis.split() == ["step", "0", "500", "1,000"]


def test_nothing_but_zeros_is_drawn_too():
    assert "█" not in text_chart.draw("rate", [0.0, 0.0], 10)
