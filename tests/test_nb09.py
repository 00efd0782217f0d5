"""Notebook 09: the pictures of correlations over epochs, and of what every method brings."""

from matplotlib.figure import Figure

from course_utils.classroom.pictures import nb09


def test_correlations_have_a_line_for_each_network_and_number():
    seeds = [[{"norms": 0.1, "biases": 0.5}, {"norms": 0.3, "biases": 0.7}]]
    axes = nb09.draw_correlations(Figure().subplots(), {"bag": seeds, "BiLSTM": seeds})
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines[:4]}
    norms, biases = [0.1, 0.3], [0.5, 0.7]
    assert drawn == {"norms, bag": norms, "biases, bag": biases, "norms, BiLSTM": norms, "biases, BiLSTM": biases}
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines[:4]}) == 4


def test_gains_stand_beside_each_other_in_the_same_order():
    axes = Figure().subplots(1, 2, sharey=True)
    nb09.draw_gains(
        axes, {"bag": {"cross-entropy": (), "NCM": [1.0, 3.0]}, "BiLSTM": {"cross-entropy": (), "NCM": [2.0, 2.5]}}
    )
    assert [ax.get_title() for ax in axes] == ["bag", "BiLSTM"]
    means = [
        [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "D"] for ax in axes
    ]
    assert means == [[(2.0, 1)], [(2.25, 1)]]
