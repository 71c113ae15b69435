from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.body import Body, build_body
from pipeline.models.network import MANY_PIXELS, Dropout, Network, build_head, channels_last_pays, dropout_mask


def images(channels: int = 3, count: int = 4) -> Tensor:
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def body(backbone: str = "test_resnet") -> Body:
    torch.manual_seed(0)
    return build_body(backbone, 32)


def with_weights_in_the_last_layer(network: Network) -> Network:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.head[-1].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
def test_a_grey_picture_gives_the_logits_of_the_same_grey_in_three_channels(backbone: str) -> None:
    network = with_weights_in_the_last_layer(Network(body(backbone), 3, 8, 0.5))
    grey = images(channels=1)
    with torch.no_grad():
        logits = network(grey)
        assert logits.std() > 0
        torch.testing.assert_close(logits, network(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("changed", [{"mean": (0.4, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.3)}])
def test_normalisation_is_inside_the_network(changed: dict[str, tuple[float, float, float]]) -> None:
    shared = body()
    plain = with_weights_in_the_last_layer(Network(shared, 3, 0, 0.0))
    other = with_weights_in_the_last_layer(Network(replace(shared, **changed), 3, 0, 0.0))
    with torch.no_grad():
        assert not torch.allclose(plain(images()), other(images()), atol=1e-3)


def test_the_body_sees_images_less_the_mean_over_the_deviation() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    network = Network(Body(nn.Flatten(), 3 * 32 * 32, mean, std), 2, 0, 0.0)
    picture = images(count=1)
    expected = torch.stack([(picture[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(network.activations(picture), expected.flatten(1))


def test_normalisation_travels_with_the_networks_state() -> None:
    state = Network(body("test_efficientnet"), 2, 0, 0.0).state_dict()
    torch.testing.assert_close(state["mean"].flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(state["std"].flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize("hidden", [0, 8])
def test_an_untrained_network_prefers_no_class(hidden: int) -> None:
    network = Network(body(), 5, hidden, 0.5).eval()
    with torch.no_grad():
        assert torch.equal(network(images()), torch.zeros(4, 5))


def test_the_logits_are_the_head_on_the_activations() -> None:
    network = with_weights_in_the_last_layer(Network(body(), 3, 8, 0.5))
    with torch.no_grad():
        activations = network.activations(images())
        assert activations.shape == (4, network.width)
        assert torch.equal(network(images()), network.head(activations))


def test_a_new_head_is_untrained_of_the_shape_asked_for_and_for_as_many_classes() -> None:
    network = with_weights_in_the_last_layer(Network(body(), 3, 8, 0.5))
    before = {name: tensor.clone() for name, tensor in network.body.state_dict().items()}
    network.reset_head(16, 0.2)
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(images()), torch.zeros(4, 3))
    linear = [(layer.in_features, layer.out_features) for layer in network.head if isinstance(layer, nn.Linear)]
    assert linear == [(network.width, 16), (16, 3)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.body.state_dict().items())


def test_a_reset_head_is_not_the_old_one() -> None:
    network = Network(body(), 3, 8, 0.5)
    old = network.head[2].weight.detach().clone()
    network.reset_head(8, 0.5)
    assert not torch.equal(network.head[2].weight, old)


def test_a_head_with_a_hidden_layer_is_fastais() -> None:
    head = build_head(20, 3, 8, 0.5)
    kinds = [type(layer) for layer in head]
    assert kinds == [nn.BatchNorm1d, Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, Dropout, nn.Linear]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.25, 0.5]
    assert [layer.num_features for layer in head if isinstance(layer, nn.BatchNorm1d)] == [20, 8]


def test_a_head_without_a_hidden_layer_is_one_linear_layer() -> None:
    head = build_head(20, 3, 0, 0.4)
    assert [type(layer) for layer in head] == [nn.BatchNorm1d, Dropout, nn.Linear]
    assert head[1].p == 0.4
    assert (head[2].in_features, head[2].out_features) == (20, 3)


@pytest.mark.parametrize("dropout", [0.1, 0.25, 0.5, 0.9])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(dropout: float) -> None:
    mask = dropout_mask((1001, 97), dropout, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert float((mask == 0).float().mean()) == pytest.approx(dropout, abs=0.01)
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - dropout)])
    for part in (mask[::2], mask[:, ::4], mask[:, 1::4]):  # four neighbours are of one draw
        assert float(part.mean()) == pytest.approx(1, abs=0.02 / (1 - dropout))


def test_dropout_acts_in_train_mode_alone_and_masks_values_and_gradients_alike() -> None:
    layer, inputs = Dropout(0.5), torch.ones(8, 50, requires_grad=True)
    torch.manual_seed(0)
    outputs = layer(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(outputs, inputs.grad)
    assert set(outputs.detach().flatten().tolist()) == {0.0, 2.0}
    torch.manual_seed(0)
    assert torch.equal(layer(inputs), outputs)
    assert not torch.equal(layer(inputs), outputs)
    assert torch.equal(layer.eval()(inputs), inputs)


@pytest.mark.parametrize(
    ("backbone", "device", "pixels", "is_channels_last"),
    [
        ("test_efficientnet", "cuda", MANY_PIXELS - 1, False),
        ("test_efficientnet", "cuda", MANY_PIXELS, True),
        ("test_efficientnet", "cpu", 0, True),
        ("test_resnet", "cuda", 0, True),
    ],
)
def test_a_gpu_has_the_channels_of_depthwise_networks_last_where_it_has_much_to_do(
    backbone: str, device: str, pixels: int, is_channels_last: bool
) -> None:
    assert channels_last_pays(body(backbone).module, torch.device(device), pixels) is is_channels_last


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_a_network_computes_the_same_however_it_lies_in_memory(backbone: str) -> None:
    network = with_weights_in_the_last_layer(Network(body(backbone), 3, 8, 0.5))
    given = images()
    with torch.no_grad():
        channels_last = network(given)
        network.lay_out(False)
        assert network.normalise(given).is_contiguous()
        assert all(weight.stride() == torch.empty(weight.shape).stride() for weight in network.parameters())
        torch.testing.assert_close(network(given), channels_last)
        network.lay_out(True)
        assert network.normalise(given).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(network(given), channels_last)
