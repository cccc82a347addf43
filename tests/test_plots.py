"""Figures show the numbers they are given, on scales that compare; and who lacks matplotlib is told what to install."""

import importlib.util
import io
import pickle
import struct

import numpy as np
import pytest

import bwds
from bwds import plots

SHAPE = (16, 32)
NAMES = ("layer_10/input", "layer_2/hidden", "layer_2/input")
IN_ORDER = ["layer 2, input", "layer 2, hidden", "layer 10, input"]
RNG = np.random.default_rng(0)


def panels(figure):
    """Axes with a title, by title."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def image(axes):
    (found,) = axes.get_images()
    return found


def drawn(figure):
    """The figure as it comes out: any warning is an error here."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_usage_maps_show_the_shares_in_the_same_colours():
    used = {name: RNG.random((2, 8)) for name in NAMES}
    figure = drawn(bwds.plots.usage_maps(used, SHAPE, cell="lstm"))
    found = panels(figure)
    assert list(found) == IN_ORDER
    np.testing.assert_array_equal(image(found["layer 2, hidden"]).get_array(), used["layer_2/hidden"])
    assert {image(axes).get_clim() for axes in found.values()} == {(0.0, 1.0)}
    assert [tick.get_text() for tick in found["layer 2, input"].get_xticklabels()] == ["i", "f", "g", "o"]


def test_kept_map_tells_apart_what_the_token_before_kept():
    kept = {name: RNG.random((3, 2, 8)) < 0.5 for name in NAMES}
    figure = drawn(plots.kept_map(kept, ["<eos>", "$", "$"], SHAPE, cell="qrnn"))
    found = panels(figure)
    assert list(found) == IN_ORDER
    shown = np.asarray(image(found["layer 2, hidden"]).get_array().filled(-1.0)).reshape(3, -1, 8)[:, :2]
    marks = kept["layer_2/hidden"]
    np.testing.assert_array_equal(shown > 0, marks)
    assert not (shown[0] == 2).any()
    np.testing.assert_array_equal(shown[1:] == 2, marks[1:] & ~marks[:-1])
    assert [tick.get_text() for tick in found["layer 2, input"].get_yticklabels()] == ["<eos>", "$", "$"]
    assert [tick.get_text() for tick in found["layer 2, input"].get_xticklabels()] == ["z", "f", "o"]


def test_layers_of_any_network_are_drawn_in_the_order_given_with_their_own_shapes():
    shapes = {"up": (2, 8), "down": (8, 2), "gate": (1, 1)}
    maps = drawn(plots.usage_maps({name: RNG.random(shape) for name, shape in shapes.items()}, SHAPE))
    kept = {name: RNG.random((3, *shape)) < 0.5 for name, shape in shapes.items()}
    for figure in (maps, drawn(plots.kept_map(kept, ["a", "b", "c"], SHAPE))):
        found = panels(figure)
        assert list(found) == list(shapes)
        ends = {name: [tick.get_text() for tick in axes.get_xticklabels()] for name, axes in found.items()}
        assert ends == {"up": ["1", "8"], "down": ["1", "2"], "gate": ["1"]}
        assert figure.get_supxlabel() == "block column (32 outputs each)"
    assert maps.get_supylabel() == "block row (16 inputs each)"


def test_groups_are_lines_over_blocks_from_the_most_to_the_least_used():
    share = np.array([[[0.1, 0.9], [0.4, 0.0]], [[0.3, 0.7], [0.6, 0.0]], [[np.nan] * 2] * 2])
    figure = drawn(plots.usage_by_group({"layer_0/input": share}, ["the", "of", "never"], SHAPE))
    shown = image(panels(figure)["layer 0, input"]).get_array().filled(-1.0)
    np.testing.assert_array_equal(shown, [[0.9, 0.4, 0.1, 0.0], [0.7, 0.6, 0.3, 0.0], [-1.0] * 4])
    assert figure.get_supxlabel().startswith("blocks of 16 x 32,")


def test_curves_show_every_run_and_what_is_far_off_sets_no_scale():
    runs = {"dense": [(1, 5000.0), (2, 120.0)], "dynamic": [(1, 150.0), (2, 100.0)]}
    figure = drawn(plots.curves(runs))
    (axes,) = figure.axes
    assert [[tuple(point) for point in line.get_xydata()] for line in axes.get_lines()] == list(runs.values())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dense  120.00", "dynamic  100.00"]
    low, high = axes.get_ylim()
    assert low < 100.0
    assert 300.0 <= high < 350.0


def test_a_png_file_has_its_size():
    content, size = plots.png_of(plots.usage_maps({"layer_0/input": RNG.random((2, 8))}, SHAPE))
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == size


def test_a_notebook_shows_a_figure():
    """IPython asks a value for its picture by this name."""
    used = {"layer_0/input": RNG.random((2, 8))}
    one, other = (plots.usage_maps(used, SHAPE) for _ in range(2))
    assert one._repr_png_() == plots.png_of(other)[0]
    assert pickle.loads(pickle.dumps(other))._repr_png_() == other._repr_png_()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_figure_is_the_same_file(kind):
    used = {"layer_0/input": RNG.random((2, 8))}
    first, second = (plots.file_of(plots.usage_maps(used, SHAPE), kind) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.usage_maps({}, SHAPE), "no gated matrices to draw"),
        (lambda: plots.kept_map({"layer_0/input": np.ones((2, 2, 8), bool)}, ["a"], SHAPE), "There are 1 tokens"),
        (lambda: plots.usage_by_group({"layer_0/input": np.ones((0, 2, 8))}, [], SHAPE), "nothing to draw"),
        (
            lambda: plots.usage_maps({"up": np.ones((3, 2, 8))}, SHAPE),
            r"'up' has shape \(3, 2, 8\); it must be \[R, C\]",
        ),
        (lambda: plots.usage_maps({"up": np.ones((2, 8))}, 16), "block_shape is 16; it must be two numbers"),
        (lambda: plots.usage_maps({"up": np.ones((2, 8))}, SHAPE, cell="gru"), "cell"),
        (lambda: plots.curves({"new": []}), "run new has no validation perplexity"),
        (lambda: plots.curves({}), "no runs"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_drawn_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_without_matplotlib_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"matplotlib, which is not installed: pip install -e \"\.\[plots\]\""):
        plots.curves({"run": [(1, 2.0)]})
