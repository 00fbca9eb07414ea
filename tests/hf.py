"""Architectures through `transformers`, randomly initialised and tiny; (B, 3, 32, 32) -> an object with .logits."""

from __future__ import annotations

import torch
from torch import nn


def hugging_face(name: str, seed: int = 0) -> nn.Module:
    import transformers as t

    small = {
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(
                image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=48, num_labels=5,
            )
        ),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, patch_size=2, num_labels=5)
        ),
        "swin": lambda: t.SwinForImageClassification(
            t.SwinConfig(
                image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=5
            )
        ),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
        ),
        "mobilenet_v2": lambda: t.MobileNetV2ForImageClassification(
            t.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=5)
        ),
        "efficientnet": lambda: t.EfficientNetForImageClassification(
            t.EfficientNetConfig(image_size=32, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, num_labels=5)
        ),
        "regnet": lambda: t.RegNetForImageClassification(
            t.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8, num_labels=5)
        ),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small[name]().eval()


LAYERS = {
    "vit": ("vit.layernorm", "vit.layers.1.mlp.fc1", "classifier"),
    "convnext": (
        "convnext.encoder.stages.1.layers.1.pwconv1",
        "convnext.encoder.stages.1.layers.1.dwconv",
        "classifier",
    ),
    "swin": ("swin.layernorm", "classifier"),
    "resnet": ("resnet.encoder.stages.1.layers.0", "classifier.1"),
    "mobilenet_v2": ("mobilenet_v2.conv_1x1", "classifier"),
    "efficientnet": ("efficientnet.encoder.top_conv", "classifier"),
    "regnet": ("regnet.encoder.stages.1.layers.0", "classifier.1"),
}
