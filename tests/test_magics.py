"""What the cell magics tell a reader, in IPython itself."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from companion import native


@pytest.fixture
def shell(monkeypatch):
    """A session that has run one cell and failed in another."""
    monkeypatch.setattr(native, "CELLS", {})
    shell = InteractiveShell()
    for text in ("%load_ext companion.native", "1 / 0"):
        shell.run_cell(text, store_history=True)
    return shell


def test_an_error_in_c_names_its_cell(shell):
    for number in (3, 4):
        done = shell.run_cell("%%c half.c\nint half(int n) {\n"
                              "  return n / m;\n}", store_history=True)
        assert f"Cell In[{number}], line 3: " in str(done.error_in_exec)
