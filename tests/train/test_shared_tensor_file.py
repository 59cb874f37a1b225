"""Names of the tensors that processes share."""

import torch

from saecache.train.shared_tensor_file import shared_names


def test_biases_of_the_width_and_single_numbers_are_not_shared() -> None:
    tensors = {name: torch.zeros(3) for name in ("W_enc", "b_enc", "optimizer/exp_avg.b_dec", "b_dec")}
    assert shared_names({**tensors, "threshold": torch.zeros(())}) == ["W_enc", "b_enc"]
