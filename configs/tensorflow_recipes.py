"""ImageNet recipes of the papers, and of TensorFlow's code; see `published.py`."""

from ml_collections import ConfigDict

from configs.published import LARGE, SMALL, base, published


@published(
    "paper",
    "v3",
    source="Howard et al., arXiv:1905.02244, section 6.1.1",
    top1={LARGE: 75.2, SMALL: 67.4},
    chosen=(
        "total_epochs",
        "optimizer.eps",
        "schedule.warmup_steps",
        "label_smoothing",
        "optimizer.decay_rule",
        "net.bn_eps",
    ),
    cost="4x4 TPU pod; hours not published",
)
def paper(config: ConfigDict) -> ConfigDict:
    """MobileNetV3, section 6.1.1: 75.2% (Large) and 67.4% (Small) top-1, on a 4x4 TPU pod.

    The paper does not give the number of epochs, the epsilon of RMSProp (slim's here), warm-up
    (none here) or label smoothing (none here).
    """
    config = base(config)
    config.batch_size = 4096
    config.total_epochs = 600.0
    config.optimizer.update(name="rmsprop_tf", rho=0.9, momentum=0.9, eps=0.002, weight_decay=1e-5)
    config.schedule.update(
        name="exponential", base_lr=0.1, decay_rate=0.99, decay_epochs=3.0, warmup_steps=0
    )
    config.ema_decay = 0.9999
    config.net.bn_decay = 0.99
    return config


@published(
    "paper",
    "v2",
    source="Sandler et al., arXiv:1801.04381, section 6.1",
    top1={"mobilenet_v2": 72.0},
    chosen=(
        "total_epochs",
        "ema_decay",
        "optimizer.eps",
        "schedule.warmup_epochs",
        "label_smoothing",
        "optimizer.decay_rule",
        "net.bn_decay",
        "net.bn_eps",
    ),
    cost="16 GPUs; hours not published",
)
def paper_v2(config: ConfigDict) -> ConfigDict:
    """MobileNetV2, section 6.1: 72.0% top-1 by 16 asynchronous workers of 96 images each.

    This recipe is synchronous, so the learning rate of the paper, which is that of one worker, is
    multiplied by 16. The paper does not give the number of epochs or the decay of the average.
    """
    config = paper(config)
    config.batch_size = 96 * 16
    config.total_epochs = 300.0
    config.optimizer.weight_decay = 4e-5
    config.schedule.update(base_lr=0.045 * 16, decay_rate=0.98, decay_epochs=1.0, warmup_steps=None)
    config.schedule.warmup_epochs = 5.0  # the summed rate needs it
    return config


@published(
    "paper",
    "mnasnet",
    source="Tan et al., arXiv:1807.11626, section 5",
    top1={"mnasnet_a1": 75.2},
    chosen=("optimizer.eps", "label_smoothing", "optimizer.decay_rule", "net.bn_eps"),
)
def paper_mnasnet(config: ConfigDict) -> ConfigDict:
    """MnasNet, section 5: 75.2% top-1; 0.256 after 5 epochs of warm-up, x 0.97 per 2.4 epochs."""
    config = paper(config)
    config.total_epochs = 350.0
    config.schedule.update(base_lr=0.256, decay_rate=0.97, decay_epochs=2.4, warmup_steps=None)
    config.schedule.warmup_epochs = 5.0
    return config


@published(
    "slim",
    "v3",
    "v2",
    "mnasnet",
    source="tensorflow/models, research/slim/nets/mobilenet",
    top1={LARGE: 75.2},
    chosen=("total_epochs",),
    cost="8 chips; hours not published",
)
def slim(config: ConfigDict) -> ConfigDict:
    """TensorFlow slim, the authors' code: 75.2% (Large) top-1 on 8 chips of 192 images each."""
    config = base(config)
    config.batch_size = 192 * 8
    config.total_epochs = 600.0  # not given in the source
    config.optimizer.update(
        name="rmsprop_tf",
        rho=0.9,
        momentum=0.9,
        eps=0.002,
        weight_decay=1e-5,
        decay_rule="kernels_but_depthwise",
    )
    config.schedule.update(
        name="exponential", base_lr=0.16, decay_rate=0.99, decay_epochs=3.0, warmup_epochs=5.0
    )
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.net.update(bn_decay=0.997, bn_eps=1e-3)
    return config


@published(
    "garden",
    "v3",
    "v2",
    "mnasnet",
    source="tensorflow/models, official/vision (model garden)",
    top1={LARGE: 75.7},
)
def garden(config: ConfigDict) -> ConfigDict:
    """TensorFlow model garden: about 75.7% (Large) top-1, with AutoAugment v0."""
    config = base(config)
    config.augment.policy = "autoaugment_v0"
    config.batch_size = 4096
    config.total_epochs = 700.0
    config.optimizer.update(
        name="adamw",
        b1=0.9,
        b2=0.999,
        eps=1e-7,
        weight_decay=0.1,
        decay_rule="all_but_batch_norm",
    )
    config.schedule.update(name="cosine", base_lr=0.004, warmup_epochs=5.0)
    config.label_smoothing = 0.1
    return config


@published(
    "jax",
    "v3",
    source="NobuoTsukamoto/jax_examples, classification/configs",
    top1={LARGE: 75.22, SMALL: 67.51},
    cost="TPU v2-8; hours not published",
)
def jax(config: ConfigDict) -> ConfigDict:
    """JAX on one TPU v2-8, after slim: 0.02 for every 192 images.

    Differences from the source: its decay begins five epochs after the end of the warm-up, ours at
    its end. A version of its Small configuration has 1536 images at 0.16, which is the same rate
    for each image.
    """
    config = base(config)
    config.net.update(bn_decay=0.997, bn_eps=1e-3)
    config.compute.dtype = "bfloat16"
    config.batch_size = 512 * 8
    config.total_epochs = 1000.0
    config.optimizer.update(name="rmsprop_tf", rho=0.9, momentum=0.9, eps=0.002, weight_decay=1e-5)
    config.schedule.update(
        name="exponential",
        base_lr=0.426,
        decay_rate=0.99,
        decay_epochs=3.0,
        warmup_epochs=5.0,
        decay_from="warmup_end",
    )
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    return config


@published(
    "jax",
    "v2",
    source="NobuoTsukamoto/jax_examples, classification/configs",
    top1={"mobilenet_v2": 71.84},
    chosen=("net.dropout", "net.bn_decay"),
    cost="TPU v2-8; hours not published",
)
def jax_v2(config: ConfigDict) -> ConfigDict:
    """MobileNetV2 of the same source.

    Differences from the source: as for V3, and its accumulator of RMSProp starts at 0.
    """
    config = jax(config)
    config.batch_size = 1024
    config.total_epochs = 500.0
    config.schedule.update(base_lr=0.064, decay_rate=0.94, decay_epochs=2.5)
    config.ema_decay = None
    return config
