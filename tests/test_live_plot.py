"""In a notebook a loss plot is one picture that is drawn again and again."""

import nbformat
import pytest
from nbclient import NotebookClient

INLINE = "MPLBACKEND", "module://matplotlib_inline.backend_inline"
SOURCE = """
from companion import SGD, Batches, LossPlot, Tensor, Trainer
from companion.layers import Linear

net = Linear(1, 1)
run = Trainer(net, SGD(net.parameters(), lr=0.1),
              Batches(Tensor([[1.0], [2.0]]), size=1), observers=[PLOT],
              loss_of=lambda model, x: model(x).square().mean())
run.fit(5);
"""


def pictures(source):
    """The pictures that a notebook of one cell shows, and its messages."""
    cell = nbformat.v4.new_code_cell(source)
    book = nbformat.v4.new_notebook(cells=[cell])
    shown = []

    def keep(cell, cell_index, execute_reply):
        shown.extend(cell.outputs)

    NotebookClient(book, timeout=120, on_cell_executed=keep).execute()
    kinds = [out for out in shown if "image/png" in out.get("data", {})]
    texts = "".join(out.get("text", "") for out in shown)
    return kinds, texts


@pytest.mark.slow
def test_a_notebook_shows_one_picture_and_the_bar(monkeypatch):
    monkeypatch.setenv(*INLINE)
    kinds, texts = pictures(SOURCE.replace("PLOT", "LossPlot(pause=0.0)"))
    assert len(kinds) == 1
    assert "5/5" in texts


@pytest.mark.slow
def test_the_last_picture_is_not_the_first(monkeypatch):
    monkeypatch.setenv(*INLINE)
    first, last = (
        pictures(SOURCE.replace("PLOT", "LossPlot(0.0)").replace("5", steps))
        for steps in ("1", "4")
    )
    assert first[0][0]["data"] != last[0][0]["data"]
