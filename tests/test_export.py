"""Merging and exporting: the same logits from other networks and files, or a refusal that says why."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import nn

from neural_polarizer import (
    FitConfig,
    InputError,
    PolarizedModel,
    merge,
    purify,
    to_exported,
    with_normalization,
    write_exported,
)
from neural_polarizer.build import build_polarizer
from neural_polarizer.methods import METHODS
from neural_polarizer.models.zoo import build_model
from neural_polarizer.polarizers import STRUCTURES, ChannelNorm

from .hf import hugging_face
from .nets import SHAPE, images, labels, make, plain_logits

AFFINE = [name for name, kind in STRUCTURES.items() if kind.affine]


def shaken(
    net: nn.Module,
    layer: str,
    structure: str = "full",
    *,
    shape: tuple[int, int, int] = SHAPE,
    constant: bool = True,
    classes: int = 5,
    capture: str = "hooks",
) -> PolarizedModel:
    """A purified model whose polarizer is far from the identity, with or without a constant part."""
    from neural_polarizer.cut import Cut

    cut = Cut(net, layer, images(2, shape=shape))
    options = {"classes": classes} if structure in ("replicated", "embedded", "attentive") else {}
    options |= {"rank": 2} if structure == "low-rank" else {"shape": cut.shape} if structure == "position" else {}
    polarizer = build_polarizer(structure, channels=cut.channels, channel_dim=cut.channel_dim, **options)
    order = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in polarizer.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=order))
        if not constant:
            for module in polarizer.modules():
                for name in ("shift",) if structure == "diagonal" else ("bias",) * isinstance(module, ChannelNorm):
                    getattr(module, name).zero_()
    return PolarizedModel(net, polarizer, layer, image_shape=shape, capture=capture)


class Convolution(nn.Module):
    """Maps of 6 channels, and the layer in question."""

    def __init__(self, layer: nn.Module, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 6, 3, padding=1), layer
        self.behind = behind or nn.Linear(8, 5)

    def forward(self, x):
        return self.behind(self.layer(self.stem(x)).relu().mean((2, 3)))


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, from a generator that is lent to it, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def convolution(**options) -> nn.Module:
    return drawn(lambda: Convolution(nn.Conv2d(6, 8, 3, **options)))


def agree(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max())


class TestMerge:
    @pytest.mark.parametrize("structure", AFFINE)
    @pytest.mark.parametrize(
        ("name", "layer"), [("plain", "fc"), ("skips", "block.shortcut"), ("tokens", "mlp"), ("channels-last", "mlp")]
    )
    def test_gives_the_same_logits(self, structure, name, layer):
        net = make(name)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        purified = shaken(net, layer, structure)
        merged = merge(purified)
        for count in (1, 7):
            x = images(count, seed=5)
            agree(plain_logits(merged, x), purified(x))
            assert not torch.allclose(plain_logits(merged, x), plain_logits(net, x), atol=1e-2)
        assert {k: v.shape for k, v in merged.state_dict().items()} == {k: v.shape for k, v in before.items()}
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        changed = {k for k, v in merged.state_dict().items() if not torch.equal(v, before[k])}
        assert changed <= {f"{layer}.weight", f"{layer}.bias"}

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
    def test_padding_with_values_of_the_input_is_exact(self, mode):
        purified = shaken(convolution(padding=1, padding_mode=mode), "layer")
        agree(merge(purified)(images()), purified(images()))

    @pytest.mark.parametrize("options", [{}, {"padding": "valid"}, {"stride": 2}, {"dilation": 2}])
    def test_without_padding(self, options):
        purified = shaken(convolution(**options), "layer")
        agree(merge(purified)(images()), purified(images()))

    @pytest.mark.parametrize("options", [{"padding": 1}, {"padding": "same"}, {"padding": (0, 1)}])
    def test_zero_padding_needs_a_polarizer_without_constant_part(self, options):
        purified = shaken(convolution(**options), "layer", constant=False)
        agree(merge(purified)(images()), purified(images()))
        with pytest.raises(InputError, match=r"cannot be merged into 'layer': .* zero padding .*mergeable=True"):
            merge(shaken(convolution(**options), "layer"))

    def test_same_padding_of_one_pixel_pads_nothing(self):
        purified = shaken(drawn(lambda: Convolution(nn.Conv2d(6, 8, 1, padding="same"))), "layer")
        agree(merge(purified)(images()), purified(images()))

    @pytest.mark.parametrize("constant", [True, False])
    def test_a_bias_comes_only_where_it_must(self, constant):
        purified = shaken(convolution(bias=False), "layer", constant=constant)
        merged = merge(purified)
        agree(merged(images()), purified(images()))
        assert ("layer.bias" in merged.state_dict()) == constant

    def test_an_identity_is_no_constant_part(self):
        """As it is where nothing kept the budget: float64 alone would see a constant of rounding."""
        net = convolution(padding=1)
        polarizer = build_polarizer("full", channels=6)
        polarizer.start(torch.rand(6, generator=torch.Generator().manual_seed(0)), torch.full((6,), 0.3))
        merged = merge(PolarizedModel(net, polarizer, "layer", image_shape=SHAPE, capture="hooks"))
        agree(merged(images()), net(images()))

    def test_the_copy_is_its_own_and_ready_for_use(self):
        net = make("plain").train()
        net.fc.weight.requires_grad_(False)
        merged = merge(shaken(net, "fc"))
        assert not merged.training
        assert not merged.fc.weight.requires_grad
        assert merged.conv1.weight.requires_grad
        assert net.training
        merged.conv1.weight.data.zero_()
        assert net.conv1.weight.abs().sum() > 0

    def test_half_precision(self):
        net = make("plain").bfloat16()
        purified = shaken(make("plain"), "fc")
        purified = PolarizedModel(net, purified.polarizer, "fc", image_shape=SHAPE, capture="hooks")
        merged = merge(purified)
        assert merged.fc.weight.dtype == torch.bfloat16
        torch.testing.assert_close(merged(images().bfloat16()), purified(images().bfloat16()), atol=0.05, rtol=0.05)

    @pytest.mark.parametrize("structure", ["position", "relu", "replicated", "embedded", "attentive"])
    def test_refuses_what_is_not_one_affine_map(self, structure):
        with pytest.raises(InputError, match=f"polarizer \\({structure}\\) is not one affine map"):
            merge(shaken(make("plain"), "conv2", structure))

    @pytest.mark.parametrize(
        ("name", "layer", "kind"), [("plain", "bn1", "BatchNorm2d"), ("tokens", "norm", "LayerNorm")]
    )
    def test_refuses_other_layers(self, name, layer, kind):
        with pytest.raises(InputError, match=f"it is a {kind}, wanted"):
            merge(shaken(make(name), layer))

    def test_refuses_groups_transposed_and_subclasses(self):
        class Own(nn.Conv2d):
            pass

        for kind, options, why in (
            (nn.Conv2d, {"groups": 2}, "in 2 groups"),
            (nn.ConvTranspose2d, {}, "it is a ConvTranspose2d"),
            (Own, {}, "it is a Own"),
        ):
            net = drawn(lambda kind=kind, options=options: Convolution(kind(6, 8, 1, **options)))
            with pytest.raises(InputError, match=why):
                merge(shaken(net, "layer"))

    def test_refuses_parametrized_layers_and_those_with_hooks(self):
        net = convolution()
        nn.utils.parametrizations.weight_norm(net.layer)
        with pytest.raises(InputError, match="parametrize"):
            merge(shaken(net, "layer"))
        net = convolution()
        net.layer.register_forward_hook(lambda *_: None)
        with pytest.raises(InputError, match="it has hooks"):
            merge(shaken(net, "layer"))

    def test_refuses_shared_weights(self):
        def tied() -> nn.Module:
            net, other = Convolution(nn.Conv2d(6, 6, 1), nn.Linear(6, 5)), nn.Conv2d(6, 6, 1)
            other.weight = net.layer.weight
            net.stem = nn.Sequential(net.stem, other)
            return net

        net = drawn(tied)
        with pytest.raises(InputError, match="shares its weights"):
            merge(shaken(net, "layer"))

    def test_refuses_weights_that_somebody_else_reads(self):
        class Reads(Convolution):
            def forward(self, x):
                return super().forward(x) + self.layer.weight.sum()

        net = drawn(lambda: Reads(nn.Conv2d(6, 8, 1)))
        with pytest.raises(InputError, match=r"the logits would change by .* something beside this layer"):
            merge(shaken(net, "layer"))

    def test_other_layers_may_have_old_weight_norm(self):
        net = convolution()
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(net.stem)
        purified = shaken(net, "layer")
        agree(merge(purified)(images()), purified(images()))


class TestMergeable:
    """A fit without a constant part, in both loops, in every structure that can be folded."""

    @pytest.mark.parametrize("structure", AFFINE)
    @pytest.mark.parametrize("loop", ["batch", "rounds"])
    def test_the_constant_part_is_exactly_zero_after_every_step(self, structure, loop, monkeypatch):
        from neural_polarizer import optim

        seen, step = [], optim.WholeSGD.step

        def watched(self) -> None:
            step(self)
            seen.append(copy.deepcopy(self._polarizer).double().folded()[1].abs().max().item())

        monkeypatch.setattr(optim.WholeSGD, "step", watched)
        options = {"structure": structure, "rank": 2, "epochs": 2, "batch_size": 8, "mergeable": True, "clip": 1.0}
        options |= {"loop": loop, "target": "random"} if loop == "rounds" else {"statistics": "batch"}
        net = make("plain")
        net.fc.weight.data *= 30  # predictions that change
        purified = purify(
            net, (images(16), labels(16)), method="npd", layer="conv2", config=FitConfig(**options), progress=False,
            capture="hooks",
        )  # fmt: skip
        assert len(seen) == 2 * (5 + 2)
        assert max(seen) == 0
        matrix = purified.polarizer.folded()[0]
        assert (matrix - torch.eye(6)).abs().max() > 1e-3
        agree(merge(purified)(images(7)), purified(images(7)))

    def test_it_is_saved_and_merged_later(self, tmp_path):
        config = FitConfig(epochs=1, batch_size=8, mergeable=True)
        purified = purify(
            make("plain"), (images(16), labels(16)), method="npd", layer="conv2", config=config, progress=False
        )
        purified.save_pretrained(tmp_path)
        loaded = PolarizedModel.from_pretrained(make("plain"), tmp_path)
        assert loaded.config.mergeable
        assert torch.equal(loaded(images()), purified(images()))
        agree(merge(loaded)(images()), purified(images()))

    @pytest.mark.parametrize("method", METHODS[1:])
    def test_class_conditional_methods_refuse_it(self, method):
        config = FitConfig(mergeable=True)
        with pytest.raises(InputError, match=f"mergeable: found True for {method}, wanted 'npd'"):
            purify(make("plain"), (images(), labels()), method=method, layer="conv2", config=config, progress=False)

    def test_auto_then_tries_only_what_can_be_merged(self):
        config = FitConfig.in_rounds(mergeable=True, epochs=1, least_steps=0, views=0, mixture=())
        net = build_model("small_resnet", classes=5, width=4)
        purified = purify(net, (images(20), labels(20)), config=config, progress=False)
        assert {t.method for t in purified.choice.trials} == {"npd"}
        assert {t.layer for t in purified.choice.trials} == {"fc", "layer3.conv1"}  # layer3 is a block
        agree(merge(purified)(images()), purified(images()))


def deployed(name: str) -> tuple[nn.Module, str, tuple[int, int, int]]:
    if name in ("plain", "skips", "in-place-shared", "channels-last"):
        layers = {"plain": "conv2", "skips": "block.conv1", "in-place-shared": "act", "channels-last": "mlp"}
        return make(name), layers[name], SHAPE
    if name == "preact":
        return build_model("preact_resnet18", classes=5, width=4), "layer4.1.conv1", (3, 16, 16)
    if name == "vgg":
        return build_model("vgg19_bn", classes=5, width=4), "features.40", (3, 32, 32)
    return hugging_face("vit"), "vit.layers.1.mlp.fc1", (3, 32, 32)


STRUCTURE = {"npd": "full", "r-cnpd": "replicated", "e-cnpd": "embedded", "a-cnpd": "attentive"}


class TestExport:
    @pytest.mark.parametrize(
        ("name", "method"),
        [
            *((name, method) for name in ("plain", "skips", "in-place-shared", "channels-last") for method in METHODS),
            ("preact", "npd"), ("preact", "r-cnpd"), ("vgg", "npd"), ("vgg", "e-cnpd"), ("vit", "r-cnpd"), ("vit", "a-cnpd"),
        ],
    )  # fmt: skip
    def test_one_program_for_any_batch(self, name, method):
        net, layer, shape = deployed(name)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        purified = shaken(net, layer, STRUCTURE[method], shape=shape, capture="graph")
        program = to_exported(purified)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        for run in (program.module(), torch.export.load(file).module()):
            for count in (1, 7):
                x = images(count, seed=5, shape=shape)
                with torch.no_grad():
                    agree(run(x), purified(x))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert all(p.requires_grad for p in net.parameters())

    def test_the_prefix_runs_once(self):
        purified = shaken(make("plain"), "conv2", "embedded", capture="graph")
        kernels = [str(n.target) for n in to_exported(purified).graph.nodes]
        assert kernels.count("aten.conv2d.default") == 1 + 1 + 2  # conv1, the polarizer, conv2 in both tails

    def test_it_shares_nothing_with_the_model(self):
        purified = shaken(make("plain"), "conv2", capture="graph")
        program, wanted = to_exported(purified).module(), purified(images())
        purified.base.conv1.weight.data.zero_()
        purified.polarizer.weight.data.zero_()
        assert torch.equal(program(images()), wanted)

    def test_a_model_that_was_cut_by_hooks(self):
        purified = shaken(make("plain"), "conv2", "embedded", capture="hooks")
        agree(to_exported(purified).module()(images(7)), purified(images(7)))

    def test_a_model_that_cannot_be_captured(self):
        class Branches(Convolution):
            def forward(self, x):
                return super().forward(x) if x.sum() > 0 else super().forward(-x)

        purified = shaken(drawn(lambda: Branches(nn.Conv2d(6, 8, 1))), "layer", capture="hooks")
        with pytest.raises(InputError, match="cannot be exported as one graph"):
            to_exported(purified)

    @pytest.mark.parametrize(
        ("name", "method"),
        [("preact", "npd"), ("vit", "npd"), ("vgg", "e-cnpd"), *(("skips", m) for m in METHODS)],
    )
    def test_onnx(self, name, method, tmp_path):
        import onnxruntime

        net, layer, shape = deployed(name)
        purified = shaken(net, layer, STRUCTURE[method], shape=shape, capture="graph")
        assert write_exported(purified, tmp_path / "x.onnx", "onnx") <= 1e-4
        assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
        session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
        for count in (1, 7):
            x = images(count, seed=5, shape=shape)
            agree(torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0]), purified(x).detach())


class TestFiles:
    def test_torch(self, tmp_path):
        purified = shaken(make("plain"), "conv2", "replicated", capture="graph")
        assert write_exported(purified, tmp_path / "x.pt2") <= 1e-4
        agree(torch.export.load(tmp_path / "x.pt2").module()(images(7)), purified(images(7)))

    def test_safetensors_go_into_the_original_architecture(self, tmp_path):
        purified = shaken(make("plain"), "fc")
        assert write_exported(purified, tmp_path / "x.safetensors", "safetensors") <= 1e-4
        net = make("plain", seed=9)
        net.load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"))
        agree(net(images(7)), purified(images(7)))

    def test_safetensors_of_the_network_inside_a_wrapper(self, tmp_path):
        base = with_normalization(make("plain"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
        purified = shaken(base, "model.fc")
        write_exported(purified, tmp_path / "x", "safetensors", network="model")
        net = make("plain", seed=9)
        net.load_state_dict(safetensors.torch.load_file(tmp_path / "x"))
        agree(with_normalization(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))(images(7)), purified(images(7)))
        for network, format in (("nowhere", "safetensors"), ("model", "onnx")):
            with pytest.raises(InputError, match=f"network: found '{network}' for {format}"):
                write_exported(purified, tmp_path / "y", format, network=network)

    def test_refusals_leave_nothing(self, tmp_path):
        for purified, format, why in (
            (shaken(make("plain"), "conv2", "embedded"), "safetensors", "is not one affine map"),
            (shaken(convolution(bias=False), "layer"), "safetensors", "needs a bias .layer.bias., which the original has not"),
            (shaken(make("plain"), "conv2"), "pickle", "format: found 'pickle'"),
            (shaken(make("plain"), "conv2"), "safetensors", "zero padding"),
            (PolarizedModel(make("plain").bfloat16(), build_polarizer("full", channels=8, channel_dim=-1), "fc", image_shape=SHAPE),
             "onnx", "in bfloat16"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=why):
                write_exported(purified, tmp_path / "x", format)
        for path in (tmp_path, tmp_path / "nowhere" / "x"):
            with pytest.raises(InputError, match="wanted a file in a folder that exists"):
                write_exported(shaken(make("plain"), "fc"), path)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_with_other_logits_is_not_written(self, tmp_path, monkeypatch):
        from neural_polarizer.deploy import export

        monkeypatch.setitem(export.FORMATS, "torch", (lambda *_: b"", lambda *_: lambda x: x.flatten(1)[:, :5]))
        with pytest.raises(InputError, match="the logits of torch differ by"):
            write_exported(shaken(make("plain"), "fc"), tmp_path / "x")
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_library_is_named_with_its_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(InputError, match=r'format: needs onnxscript .*pip install "neural-polarizer\[export\]"'):
            write_exported(shaken(make("plain"), "fc"), tmp_path / "x.onnx", "onnx")

    def test_the_program_runs_without_this_library(self, tmp_path):
        write_exported(shaken(make("plain"), "conv2", "attentive", capture="graph"), tmp_path / "x.pt2")
        code = (
            "import sys, torch; run = torch.export.load(sys.argv[1]).module();"
            "assert run(torch.rand(3, 3, 8, 8)).shape == (3, 5); assert 'neural_polarizer' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "x.pt2"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
