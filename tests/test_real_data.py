"""Tests that need real data say where it is looked for, and are skipped only where it is not."""

import pytest

from tests.real_data import DEFAULT, real_data


def test_the_variable_names_the_folder(tmp_path, monkeypatch):
    (tmp_path / "glue").mkdir()
    monkeypatch.setenv("CAPABOOST_DATA", str(tmp_path))
    assert real_data("glue") == tmp_path / "glue"
    with pytest.raises(pytest.skip.Exception, match=f"{tmp_path}/squad does not exist; set CAPABOOST_DATA"):
        real_data("squad")


def test_it_lies_beside_the_repository_by_default(pytestconfig, monkeypatch):
    monkeypatch.delenv("CAPABOOST_DATA", raising=False)
    assert pytestconfig.rootpath.parent / "shared" / "data" == DEFAULT
    if DEFAULT.exists():
        assert real_data() == DEFAULT.resolve()
