"""The model: as many zeros as were asked for, in the language model's layers and nowhere else."""

from pathlib import Path

from vlsafe.model.load import load_model


def test_a_quarter_of_each_matrix_is_zero(pruned: Path) -> None:
    parameters = dict(load_model(pruned, "cpu").named_parameters())
    matrices = {name: p for name, p in parameters.items() if "language_model.layers." in name and p.dim() == 2}
    assert matrices
    for matrix in matrices.values():
        assert int((matrix == 0).sum()) == matrix.numel() // 4
    assert all((p != 0).any() for p in parameters.values() if p.dim() == 2)
    assert not any((p == 0).any() for name, p in parameters.items() if p.dim() == 2 and name not in matrices)
