import pickle

from matplotlib.figure import Figure

from ltlearn.plots.figure import blank_figure


def test_a_notebook_gets_an_image_without_pyplot():
    figure = blank_figure(2, 1)
    figure.subplots().plot([0, 1])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_pickle_is_a_plain_figure():
    figure = blank_figure(2, 1, "constrained")
    figure.subplots().plot([0, 1])
    copied = pickle.loads(pickle.dumps(figure))
    assert type(copied) is Figure
    assert copied.get_size_inches().tolist() == [2, 1]
    assert len(copied.axes) == 1
