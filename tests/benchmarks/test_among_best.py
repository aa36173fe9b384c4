"""Which values the best recorded configurations have."""

from __future__ import annotations

from benchmarks.search_quality.among_best import Count, Scored, count, rows_of, table, tasks


def test_counts_the_best_tenth() -> None:
    scored = [Scored({"learning_rate": 1e-4 * place, "loss": "bce"}, place / 20) for place in range(1, 20)]
    scored.append(Scored({"learning_rate": 5e-3}, 0.99))
    rows = dict(rows_of("learning_rate", []))
    assert count(scored, "learning_rate", rows["0.002 to 0.005"]) == Count(0, 0)
    assert count(scored, "learning_rate", rows["0.005 to 0.01"]) == Count(1, 1)
    assert count(scored, "learning_rate", rows["0.001 to 0.002"]) == Count(1, 10)
    assert count(scored, "loss", dict(rows_of("loss", ["bce", "dice"]))["bce"]) == Count(1, 19)


def test_rows_of_choices_are_in_order() -> None:
    assert [label for label, _ in rows_of("lesion_share", [0.6, None, 0.3])] == ["null", "0.3", "0.6"]
    assert [label for label, _ in rows_of("base_channels", [16, 4, 8])] == ["4", "8", "16"]
    assert [label for label, _ in rows_of("batch_size", [])][-1] == "from 17"


def test_the_table_adds_up_divisions_and_tasks() -> None:
    one = [Scored({"norm": "batch"}, 0.5)] * 9 + [Scored({"norm": "instance"}, 0.6)]
    lines = table({"a": [one, one], "b": [one]}).splitlines()
    assert lines[0] == "| value | a | b | all |"
    assert lines[2:] == ["| norm batch | 0 of 18 | 0 of 9 | 0 of 27 |", "| norm instance | 2 of 2 | 1 of 1 | 3 of 3 |"]


def test_all_recorded_tasks_are_counted() -> None:
    found = tasks()
    assert len(found["ms-flair"]) == 3
    assert all(len(division) > 20 for divisions in found.values() for division in divisions)
