"""The plots of the pages: a width or a method has one colour, and panels that show the same have the same scales."""

from pathlib import Path

import pytest

from benchmarks.quality.grid import HEADLINE, SIZES, variants
from benchmarks.report import decision, performance, tpu_pod

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

pytest.importorskip("matplotlib", reason="plots need the extra plots")


@pytest.fixture
def figures(monkeypatch):
    """All figures, as they were saved."""
    from benchmarks.report import plots

    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(plots.plt, "close", saved.append)
        yield saved
    plots.plt.close("all")


def shown(figure):
    """The axes that show something."""
    return [axis for axis in figure.axes if axis.axison]


def colours(axes):
    """{label: colours of its lines}."""
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            # That of an error bar is a tuple, whose first part is the marker.
            line = handle[0] if isinstance(handle, tuple) else handle
            found.setdefault(label, set()).add(line.get_color())
    return found


@pytest.mark.parametrize("page", [performance, decision, tpu_pod])
def test_all_panels_of_a_figure_have_the_same_scales_which_hold_all_points(page, figures, tmp_path):
    page.write(RESULTS, tmp_path)
    assert figures
    for figure in figures:
        (limits,) = {(axis.get_xlim(), axis.get_ylim()) for axis in shown(figure)}
        for axis in shown(figure):
            for x, y in (line.get_xydata().T for line in axis.get_lines() if line.get_marker() != "None"):
                assert limits[0][0] < x.min() <= x.max() < limits[0][1]
                assert limits[1][0] < y.min() <= y.max() < limits[1][1]


def test_a_width_has_one_colour_of_its_own_in_all_figures(figures, tmp_path):
    for page in (performance, decision):
        page.write(RESULTS, tmp_path)
    found = colours([axis for figure in figures for axis in shown(figure)])
    assert len(set.union(*found.values())) == len(found) == 8
    for figure in figures:
        words = [text.get_text() for text in figure.legends[0].get_texts()]
        widths = [int(label.split()[1].replace(",", "")) for label in words if label.startswith("width")]
        assert widths == sorted(set(widths))


def test_a_method_has_one_colour_of_its_own_in_all_panels(figures, tmp_path):
    from benchmarks.report.plots import METHODS
    from benchmarks.report.results_plots import draw, method_of

    assert {method_of(name) for preset in SIZES for name in variants(preset)} == METHODS.keys()
    names = list(variants("ptb-lstm-small"))
    tests = {name: [120.0 + number] * 3 for number, name in enumerate(names)}
    costs, curves = dict.fromkeys(names, 0.9), {name: {1.0: 150.0, 2.0: tests[name][0]} for name in HEADLINE}
    costs["dense"] = 1.0
    draw(tmp_path / "plot.svg", costs=costs, times={"dense": 1.0, names[-1]: 0.5}, tests=tests, curves=curves)
    assert [len(axis.containers) for axis in figures[0].axes] == [len(names), 2, 0]
    by_method = {}
    for name, found in colours(figures[0].axes).items():
        by_method.setdefault(method_of(name), set()).update(found)
    assert len(set.union(*by_method.values())) == len(by_method) == len(METHODS)


def test_intervals_of_few_seeds_and_outliers_do_not_set_the_scale(figures, tmp_path):
    from benchmarks.report.results_plots import draw

    tests = {"dense": [120.0, 121.0, 122.0], "magnitude-0.5": [110.0, 130.0], "dynamic-bias-0.5": [600.0]}
    draw(
        tmp_path / "plot.svg",
        costs={"dense": 1.0, "magnitude-0.5": 0.8, "dynamic-bias-0.5": 0.8},
        times={},
        tests=tests,
        curves={},
    )
    left = figures[0].axes[0]
    bars = [bar for container in left.containers for bar in container[2][0].get_segments()]
    (drawn,) = [bar[:, 1] for bar in bars if bar.size]
    assert left.get_ylim()[0] < drawn.min() < drawn.max() < left.get_ylim()[1] < 130
    # Two seeds and one seed of the same cost stand side by side.
    x = [container[0].get_xdata()[0] for container in left.containers]
    assert x[0] == 1.0
    assert x[1] < 0.8 < x[2]
