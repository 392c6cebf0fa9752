"""The API page: every public name with its docstring, and no warning."""

import html

import pytest

import moge_bench

pytest.importorskip("pdoc", reason="pdoc is not installed: pip install 'moge-bench[docs]'")
from scripts import api_page


@pytest.mark.slow
def test_every_public_name_is_on_its_page(tmp_path):
    pages = api_page.write_api_page(tmp_path)
    assert len(pages) == len(api_page.MODULES) and (tmp_path / "index.html").exists()
    text = html.unescape(pages[0].read_text(encoding="utf-8")).replace("<code>", "")
    for name in moge_bench.__all__:
        assert f'id="{name}"' in text, name
        sentence = getattr(moge_bench, name).__doc__.strip().splitlines()[0]
        assert sentence.split("``")[0].split("`")[0][:60].strip() in text, name
    assert 'id="attach_group_sparsity"' in pages[1].read_text(encoding="utf-8")


def test_a_warning_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text("def f(x: 'Nothing') -> None:\n    \"A name.\"\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(api_page, "MODULES", ("odd",))
    with pytest.raises(UserWarning, match="Nothing"):
        api_page.write_api_page(tmp_path / "out")
