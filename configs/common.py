"""Every field of a configuration with its meaning."""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from mbv3_jax.core.registry import Registry
from mbv3_jax.train.distillation import DISTILLATION
from mbv3_jax.train.losses import LOSSES
from mbv3_jax.train.optimizers import OPTIMIZERS
from mbv3_jax.train.schedules import SCHEDULES


def default(network: str) -> ConfigDict:
    """A configuration of `network` with every field, of which only the durations are missing.

    None means "not given". Of a duration with _steps, _epochs and _examples exactly one is given.

    Args:
      network: a name of `mbv3_jax.arch.build`.

    Returns:
      The configuration, locked.
    """
    config = ConfigDict()
    config.seed = 0  # of weights, order and augmentation
    config.seeds = placeholder(tuple)  # (0, 1, 2): one run for each, trained at once

    # The network: the arguments of mbv3_jax.arch.build, which documents them.
    config.net = dict(
        # mobilenet_v3_small, mobilenet_v3_large, both with _minimalistic, mobilenet_v2, mnasnet_a1
        name=network,
        width=1.0,
        width_rule="slim",  # slim, keras, torchvision, timm
        resolution=FieldReference(224, field_type=object),  # the side, or (height, width)
        num_classes=placeholder(int),  # None: as many as the data has
        in_channels=3,
        padding="same",  # same (TensorFlow), symmetric (PyTorch)
        nonlinearity="paper",  # paper, relu, relu6, swish, h_swish, swish_for_h_swish, h_swish@N
        se="paper",  # paper, none, everywhere
        se_ratio=placeholder(float),  # squeezed channels over those of se_of; None: as in the paper
        se_of=placeholder(str),  # expansion, input
        se_divisor=placeholder(int),  # of the squeezed channels: 8, or 1 in MnasNet
        se_gate=placeholder(str),  # hard_sigmoid, sigmoid
        stem_filters=placeholder(int),  # of the first layer; None: as in the paper
        stem_act=placeholder(str),  # relu, relu6, h_swish, swish
        last_stage="paper",  # paper, efficient, original
        kernels="paper",  # paper, 3x3, 5x5, 7x7
        expansions=placeholder(tuple),  # of every block
        shortcut=True,  # where stride and channels allow it
        head_filters=placeholder(int),  # of the layer before the logits; None: as in the paper
        last_se=False,  # squeeze-and-excite after the last 1x1, before pooling
        bn_eps=1e-3,  # added to the variance in BatchNorm
        bn_decay=0.99,  # of the running statistics, a step
        dropout=0.2,  # before the logits
        drop_path=0.0,  # of the last block with a shortcut; earlier ones have less
    )

    # A spec.json to train instead of a table of config.net, see `configs/found.py`. Then name,
    # resolution, in_channels, padding, bn_eps, bn_decay, dropout and drop_path of config.net may be
    # None, which takes them from the file.
    config.spec = placeholder(str)

    # A run folder or an import folder to start from: its weights, and its network instead of
    # config.net. Then name, resolution, dropout, drop_path and bn_decay of config.net,
    # augment.normalize and the evaluation crop of config.data may be None, which takes them from
    # the folder.
    config.init = placeholder(str)

    # Which parameters learn, and how fast; see mbv3_jax.train.finetune.
    config.finetune = dict(
        frozen="",  # stages that do not learn: "stem-block6", "stem,1-6"
        freeze_bn=False,  # all BatchNorm use fixed running statistics; in frozen stages always
        backbone_lr_factor=1.0,  # of everything except the logits
        lr_factors=placeholder(tuple),  # (("block1/.*", 0.1), ...), by parameter path
    )

    # Training in simulated int8; see mbv3_jax.nn.fake_quant. The durations are None if it is off.
    config.quant = dict(
        enabled=False,  # whether to train in simulated int8
        range_decay=0.99,  # of the moving averages of minima and maxima
        delay_steps=placeholder(int),  # trained in float before anything is rounded
        delay_epochs=placeholder(float),  # the same in epochs
        delay_examples=placeholder(int),  # the same in examples
        freeze_steps=placeholder(int),  # after these, ranges and BatchNorm statistics are fixed
        freeze_epochs=placeholder(float),  # the same in epochs
        freeze_examples=placeholder(int),  # the same in examples
    )

    # How the network is computed; see mbv3_jax.nn.modules.Compute.
    config.compute = dict(
        dtype="float32",  # float32, bfloat16 (weights and BatchNorm stay float32)
        depthwise="auto",  # auto, grouped, shifted
        batch_norm="cross_device",  # cross_device, per_device
        shard_optimizer=False,  # spread optimizer state and average over the devices (ZeRO-1)
    )

    # See mbv3_jax.data.source. An option that the source does not have must be None.
    config.data = dict(
        # digits, clutter, synthetic, imagenet, tfds/NAME, folder:PATH, table:PATH,
        # huggingface:PATH, webdataset:PATH, FILE.py:NAME
        name="digits",
        data_dir=placeholder(str),  # imagenet, tfds: where TFDS keeps prepared data
        train_split=placeholder(str),  # of files: train
        eval_split=placeholder(str),  # of files: validation, val, valid or test; clutter: test
        split_fraction=placeholder(float),  # of files: hold out this fraction of train
        image_column=placeholder(str),  # table: path or image; huggingface: that of type Image
        label_column=placeholder(str),  # table: label; huggingface: that of type ClassLabel
        split_column=placeholder(str),  # table: split
        # table, huggingface, webdataset: single, multi (several labels per image), soft
        # (probabilities); None: single
        labels=placeholder(str),
        num_classes=placeholder(int),  # synthetic
        num_examples=placeholder(int),  # synthetic
        balanced=placeholder(bool),  # True: training sees every class equally often
        repeats=placeholder(int),  # views of each image in its batch; None: 1
        on_error="raise",  # raise, skip: for an example that cannot be read
        # Of image files: the crop; mbv3_jax.data.decode.decode_view has the defaults.
        area=placeholder(tuple),  # (0.08, 1): of the training crop
        ratio=placeholder(tuple),  # (3 / 4, 4 / 3): of the training crop
        interpolation=placeholder(str),  # bilinear, bicubic
        crop_fraction=placeholder(float),  # 0.875: of the evaluation crop
        central=placeholder(str),  # square, stretch
        exif_rotate=placeholder(bool),  # False for imagenet and tfds, else True
        # How the data is read, which does not change what is read.
        num_workers=placeholder(int),  # processes that decode; None: one per core, if needed
        num_threads=1,  # threads that read, in each process
        prefetch_batches=4,  # batches that are read ahead
    )

    # Augmentation on the device; see mbv3_jax.data.augment.make_preprocess.
    config.augment = dict(
        normalize="inception",  # inception ([-1, 1]), torch (mean and deviation of ImageNet)
        flip=False,
        rotate_degrees=0.0,
        zoom=0.0,
        translate=0.0,
        pad="zero",  # zero, edge
        policy="none",  # none, autoaugment_v0, randaugment, augmix
        policy_interpolation="nearest",  # nearest, bilinear
        # pixels; autoaugment_v0 250, randaugment 100, augmix 0.45 sides
        policy_translate=placeholder(float),
        randaugment_layers=placeholder(int),  # 2
        randaugment_magnitude=placeholder(float),  # 10, the largest
        randaugment_magnitude_std=placeholder(float),  # 0; from 100 up uniform
        randaugment_prob=placeholder(float),  # 1
        randaugment_cutout=placeholder(float),  # pixels, 40
        augmix_magnitude=placeholder(float),  # 3, of 10
        augmix_width=placeholder(int),  # 3 chains
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        erase_prob=0.0,
        erase_mode="pixel",  # pixel, const
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
    )

    config.batch_size = 64  # over all devices
    config.accum_steps = 1  # parts of a batch, whose gradients are averaged before an update
    config.total_steps = placeholder(int)  # updates; of the three durations one is given
    config.total_epochs = placeholder(float)  # the same in epochs
    config.total_examples = placeholder(int)  # the same in examples

    # The options of an optimizer, a schedule and a loss are those of its entry in
    # mbv3_jax.train.optimizers, .schedules and .losses. An option that the chosen one does not have
    # must be None.
    config.optimizer = dict(
        name="rmsprop_tf",  # rmsprop_tf, sgd, adam, adamw, lamb, lion, muon
        weight_decay=1e-5,
        decay_rule="kernels",  # kernels, kernels_but_depthwise, all_but_batch_norm, all, none
        clip_norm=placeholder(float),
        **_options(OPTIMIZERS),  # rho, momentum, nesterov, b1, b2, eps, trust_rule, muon_rule
    )
    config.schedule = dict(
        name="cosine",  # constant, exponential, cosine, step
        base_lr=0.1,  # for the whole batch
        warmup_steps=placeholder(int),  # of the three durations one is given
        warmup_epochs=placeholder(float),  # the same in epochs
        warmup_examples=placeholder(int),  # the same in examples
        noise=placeholder(tuple),  # (0.42, 0.9): noisy between these parts of the run
        noise_limit=placeholder(float),  # 0.67
        noise_std=placeholder(float),  # 1
        # decay_rate, decay_epochs, decay_from, final_lr_factor, cooldown_epochs, boundary_epochs,
        # factor
        **_options(SCHEDULES),
    )
    config.loss = dict(
        # cross_entropy, focal, binary_cross_entropy, bce (for several labels per image),
        # semantic_softmax (for a hierarchy of classes)
        name="cross_entropy",
        # "balanced" (images / (classes * images of the class)), or a number for each class; None: 1
        class_weights=placeholder(object),
        # gamma, target_threshold, hierarchy (a CSV table: child,parent)
        **_options(LOSSES, without=("label_smoothing",)),
    )
    config.label_smoothing = 0.0  # for losses that have it

    # A trained network that this one also learns from: a run folder, an import folder or a
    # .stablehlo file; or several, whose logits are averaged, as ("runs/a", "runs/b").
    config.teacher = placeholder(object)
    # How it learns from it; all None without a teacher. See mbv3_jax.train.distillation.
    config.distillation = dict(
        name=placeholder(str),  # None: kl; js, symmetric_kl, hard
        weight=placeholder(float),  # None: 0.5; the label loss has the rest
        dtype=placeholder(str),  # of the teacher: float32, bfloat16; None: float32
        features=placeholder(tuple),  # (16,): the strides of maps to learn from too; None: none
        features_weight=placeholder(float),  # of the loss of these maps, which is added; None: 1
        # temperature
        **_options(DISTILLATION),
    )

    config.ema_decay = placeholder(float)  # of weights and BatchNorm statistics; None: no average
    # How many last epochs to average over, instead of a moving average (SWA); not with early_stop.
    # None: none.
    config.average_epochs = placeholder(float)

    config.log_every_steps = 10  # a record is the mean of the steps since the last one
    config.eval_batch_size = 256  # over all devices
    # Between evaluations, and between checkpoints; of the three durations one is given.
    config.eval_every_steps = placeholder(int)
    config.eval_every_epochs = placeholder(float)  # the same in epochs
    config.eval_every_examples = placeholder(int)  # the same in examples
    config.checkpoint_every_steps = placeholder(int)  # of the three durations one is given
    config.checkpoint_every_epochs = placeholder(float)  # the same in epochs
    config.checkpoint_every_examples = placeholder(int)  # the same in examples
    config.keep_checkpoints = 3  # the newest ones
    # If the newest checkpoint is damaged: earlier (continue from the last intact one) or refuse;
    # None: earlier.
    config.on_damaged = placeholder(str)
    config.keep_best = False  # also keep the checkpoint of the best evaluation, for --step=best
    # None: top1; else loss, ece, top5, balanced_accuracy, macro_f1, weighted_f1, ..., or of two
    # classes auc, average_precision; see mbv3_jax.run.metrics.EVAL_METRICS.
    config.keep_best_metric = placeholder(str)
    # Ends the run after `patience` evaluations in a row that are not better than those before them.
    # The learning rate still follows the schedule of the whole run.
    config.early_stop = dict(
        patience=placeholder(int),  # None: never
        metric=placeholder(str),  # as keep_best_metric
    )
    config.profile = placeholder(tuple)  # (11, 20): trace these steps, for XProf or TensorBoard
    config.tracker = placeholder(str)  # wandb, mlflow or trackio, which gets the metrics too
    config.save_predictions = False  # write predictions.npz for every held-out image, at the end
    return config.lock()


def _options(registry: Registry, without: tuple[str, ...] = ()) -> dict:
    """A field for each option of the entries of a registry; None: the default of the entry."""
    return {k: placeholder(kind) for k, kind in registry.fields().items() if k not in without}
