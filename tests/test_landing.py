"""The landing page's picture, drawn by site/landing.py."""

import pytest


@pytest.fixture(scope="module")
def landing(extension):
    return extension("landing")


@pytest.mark.parametrize("many", [2, 20, 60, 200])
def test_the_largest_file_is_named_however_many_there_are(landing, many):
    texts = {f"companion/m{i}.py": "x\n" * 100 for i in range(many)}
    texts["companion/tensor.py"] = "x\n" * 100 * many
    drawn = "".join(landing.Column(490, texts).draw("start"))
    assert ">tensor.py</text>" in drawn


def test_a_package_is_named_by_its_folder(landing):
    column = landing.Column(490, {"companion/tensor/__init__.py": "x\n" * 9})
    assert ">tensor</text>" in "".join(column.draw("start"))


def test_a_column_fills_its_height_and_no_more(landing):
    column = landing.Column(490, {f"m{i}.py": "x\n" * 9 for i in range(80)})
    below = column.point("m79.py", 9) + column.scale / 2
    assert below == pytest.approx(landing.HEIGHT)
    assert list(column.tops.values()) == sorted(column.tops.values())
