import pytest

from dyncp_kernels.nn import ConvFSENet, files, save
from dyncp_kernels.nn.default_models import narrower_models, pruned_models, static_model


def test_models_are_chosen_by_geometry(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a model with gates at none must be shipped \(got \[\]\)"):
        static_model()
    assert narrower_models() == []
    save(ConvFSENet(hidden=76), tmp_path / "a-narrow")
    save(ConvFSENet(site="hidden"), tmp_path / "b-hidden")
    save(ConvFSENet(site="output"), tmp_path / "c-output")
    save(ConvFSENet(site="output", gate_per="static"), tmp_path / "b-frozen")
    save(ConvFSENet(), tmp_path / "d-dense")
    assert static_model() == "d-dense"
    assert pruned_models() == ["c-output", "b-hidden"]
    assert narrower_models() == ["a-narrow"]
