"""What an objective does unless it says otherwise."""

import torch

from clipmill.engine.objective import split_batch
from helpers.regression import Regression, regression_batches


def test_pieces_add_up_to_the_gradient_of_the_whole():
    torch.manual_seed(0)
    objective = Regression(dropout=0.0, norm=False)
    batch = next(regression_batches(0))
    expected = objective(batch)["squared"]
    expected.backward()
    gradients = {n: p.grad for n, p in objective.named_parameters()}
    for num_pieces in (1, 2, 8):
        objective.zero_grad(set_to_none=True)
        losses = objective.accumulate(split_batch(batch, num_pieces), objective)
        torch.testing.assert_close(losses["squared"], expected.detach())
        assert not losses["squared"].requires_grad
        for name, parameter in objective.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_by_itself_it_scales_no_rate():
    objective = Regression()
    assert objective.layer_id("network.0.weight") is None
    assert objective.num_layers == 0
