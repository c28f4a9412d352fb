"""Every setting of gsjax, once: its class, its default, what it does and what it may be.

The defaults pre-train a small encoder by SimCLR with graded similarity on tiles of photographs
that installed packages carry. A file in `configs/` starts from `get_config()` and overrides what
differs; `--config.some.key=value` overrides on the command line. Values are numbers, strings or
booleans; a list is a comma-separated string. A number is at least 0 unless `low` says otherwise.
"""

import ml_collections

from gsjax.config.schema import Setting, free, orders, shapes

# In a work directory with checkpoints, what `shapes` the trained encoder or `orders` its images
# stays as it is; what is `free` may change with every start.
SETTINGS: dict[str, Setting] = {
    "method": shapes("simclr", "what pre-trains the encoder", choices=("simclr", "simsiam")),
    "seed": shapes(5, "initial weights, data order, crops and augmentations"),
    "batch_size": shapes(128, "images per step over all devices; each gives two views", low=2),
    "num_epochs": shapes(0, "an epoch is floor(images / batch_size) steps"),
    "num_steps": shapes(200, "when positive, the length of the run instead of num_epochs"),
    "platform": free(
        "auto",
        "devices to insist on; auto takes what JAX finds and warns when it is only the CPU",
        choices=("auto", "cpu", "gpu", "tpu"),
    ),
    "remat": free(
        False,
        "recompute the encoder's blocks in the backward pass: less memory, "
        "more time, same gradients",
    ),
    # Images.
    "data.source": shapes("photos", "a TFDS name such as cifar10, or folder, or photos (embedded)"),
    "data.split": shapes(
        "train", 'for pre-training; of a folder: data_dir/SPLIT, or data_dir if ""'
    ),
    "data.labelled_split": free(
        "train", 'bank of kNN, training of the linear evaluation; "" for none'
    ),
    "data.test_split": free("test", "what both classify"),
    "data.data_dir": free("", 'TFDS directory (its own default if "") or the folder of images'),
    "data.image_size": shapes(32, "side S of the views in pixels", low=8, high=4096),
    "data.memory_gb": orders(
        4.0, "TFDS splits of at most this many GB of files are kept in memory"
    ),
    "data.mean": shapes("0.485,0.456,0.406", "RGB normalisation", count=3, high=1),
    "data.std": shapes("0.229,0.224,0.225", "its divisor", count=3, low=1e-6, high=1),
    "data.max_damaged": free(
        0.001, "share of the pictures that may be undecodable before training stops", high=1
    ),
    # Encoder and heads.
    "encoder.name": shapes(
        "resnet18", "depth of the ResNet", choices=("resnet18", "resnet34", "resnet50", "resnet101")
    ),
    "encoder.width": shapes(
        16, "channels of the first stage; 64 in the ResNet paper", low=1, high=2**16
    ),
    "encoder.stem": shapes(
        "cifar",
        "imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1",
        choices=("imagenet", "cifar"),
    ),
    "encoder.dtype": shapes(
        "float32",
        "bfloat16 for computing only, float64 for all of it",
        choices=("float32", "bfloat16", "float64"),
    ),
    "encoder.zero_init_residual": shapes(
        True, "the last BN scale of each residual block starts at 0"
    ),
    "projector.num_layers": shapes(
        2, "Linear layers; all but the last with BN and ReLU", low=1, high=100
    ),
    "projector.hidden_dim": shapes(512, "width between them", low=1, high=2**16),
    "projector.out_dim": shapes(128, "of the embedding", low=1, high=2**16),
    "projector.last_bn": shapes(False, "BN after the last layer (SimSiam always trains with it)"),
    "predictor.hidden_dim": shapes(
        512, "width between its two layers; SimSiam only", low=1, high=2**16
    ),
    # Loss.
    "similarity.measure": shapes(
        "ioa", "none is the baseline, without graded similarity", choices=("ioa", "iou", "none")
    ),
    "similarity.threshold": shapes(
        0.5, "lambda of eq. 5: from this overlap on, views count as the same", high=1
    ),
    "similarity.scale": shapes(
        1.0, "of the positive term of eq. 10; 0.5 meets NT-Xent at psi = 1", low=1e-6
    ),
    "loss.temperature": shapes(0.5, "tau of NT-Xent", low=1e-6),
    "loss.siamese": shapes(
        "mse",
        "SimSiam without graded similarity: mse (eq. 3) or cosine (half of it)",
        choices=("mse", "cosine"),
    ),
    # Crops and augmentations.
    "augment.crop": shapes(
        "torchvision", "law of the random crops", choices=("torchvision", "tf", "byol")
    ),
    "augment.min_scale": shapes(
        0.08, "smallest crop area as a share of the image", low=1e-6, high=1
    ),
    "augment.max_scale": shapes(1.0, "largest", low=1e-6, high=1),
    "augment.flip": shapes(0.5, "probability of a horizontal flip", high=1),
    "augment.jitter": shapes(0.8, "probability of the colour jitter", high=1),
    "augment.brightness": shapes(0.8, "strength s: a factor from 1 - s to 1 + s"),
    "augment.contrast": shapes(0.8, "likewise"),
    "augment.saturation": shapes(0.8, "likewise"),
    "augment.hue": shapes(0.2, "largest shift either way, in turns", high=0.5),
    "augment.grey": shapes(0.2, "probability of a grey view", high=1),
    "augment.blur": shapes(0.0, "probability of a Gaussian blur", high=1),
    "augment.min_sigma": shapes(
        0.1, "smallest standard deviation of the blur, in pixels", low=1e-3
    ),
    "augment.max_sigma": shapes(2.0, "largest"),
    # Optimiser.
    "optimizer.name": shapes("lars", "rule of the update", choices=("lars", "sgd")),
    "optimizer.learning_rate": shapes(0.3, "before scaling"),
    "optimizer.scaling": shapes(
        "linear", "of the rate, by batch_size / 256", choices=("linear", "sqrt", "none")
    ),
    "optimizer.momentum": shapes(0.9, "of LARS and SGD", high=0.9999),
    "optimizer.weight_decay": shapes(1e-6, "lars: weights only; sgd: every parameter"),
    "optimizer.trust_coefficient": shapes(0.001, "lars only"),
    "optimizer.fix_pred_lr": shapes(False, "SimSiam: the predictor's learning rate does not decay"),
    "schedule.warmup_epochs": shapes(
        10.0, "linear from 0, then cosine to 0; with num_steps at most a tenth"
    ),
    # The kNN monitor and the evaluations.
    "knn.preset": free(
        "thesis",
        "thesis: k = 201, majority; instdisc: k = 200, weights exp(cos / 0.1)",
        choices=("thesis", "instdisc"),
    ),
    "knn.k": free(0, "when positive, instead of the preset's"),
    "knn.every_epochs": free(10.0, "between two measurements; the end is always measured"),
    "knn.baselines": free(True, "also measure raw pixels and the untrained encoder, first of all"),
    "features.batch_size": free(256, "images per step of the extraction", low=1),
    "features.keep": free(True, "in workdir/features/kept, for the next job on the same encoder"),
    "features.source": free("", 'job features: as data.source; "" for that of the pre-training'),
    "features.data_dir": free("", "its folder"),
    "features.split": free("", 'its split; "" for data.split or, of a folder, all its pictures'),
    "features.name": free("", 'of the file; "" to make one of source and split'),
    "linear.num_epochs": free(90, "over data.labelled_split", low=1),
    "linear.batch_size": free(256, "over all devices and hosts", low=1),
    "linear.learning_rate": free(
        0.0, "per 256 images; 0 for the thesis' 0.1 (simclr) or 30 (simsiam)"
    ),
    "linear.momentum": free(0.9, "Nesterov's", high=0.9999),
    "linear.min_scale": free(
        0.08, "smallest random crop as a share of the image", low=1e-6, high=1
    ),
    "linear.flip": free(0.5, "probability of a horizontal flip", high=1),
    "transfer.datasets": free(
        "cifar10,cifar100,voc2007,aircraft,cars,flowers,food,pets",
        "names of gsjax/evaluate/datasets.py, other TFDS names, or folders of data_dir with train/ "
        "and test/ that hold a folder a class",
    ),
    "transfer.data_dir": free(
        "", 'TFDS directory (its own default if "") and place of the folders'
    ),
    "transfer.max_examples": free(0, "when positive, take a fixed random part of each split"),
    "transfer.max_iterations": free(500, "of L-BFGS for each l2 value", low=1),
    "transfer.memory_gb": free(
        0.0, "for l2 values fitted at once; 0: one by one, from the last two"
    ),
    "retrieval.datasets": free(
        "roxford5k,rparis6k", "folders of data_dir with gnd_<name>.pkl and jpg/"
    ),
    "retrieval.data_dir": free("", "where they are"),
    "retrieval.protocol": free(
        "thesis",
        "thesis: S x S pixels; aspect: keep the ratio; multiscale: at 3",
        choices=("thesis", "aspect", "multiscale"),
    ),
    "retrieval.image_size": free(
        1024, "longer side in pixels of aspect and multiscale", low=16, high=2**16
    ),
    "retrieval.pictures": free(3, "queries whose first ten results are drawn, for each data set"),
    "diagnostics.num_images": free(
        2000, "pictures of data.test_split that are measured and mapped", low=2
    ),
    "diagnostics.neighbours": free(6, "of them whose nearest neighbours are drawn"),
    "report.runs": free("", "folders of further runs and sweeps, beside those under --workdir"),
    "report.diagnostics": free(True, "run the job diagnostics on checkpoints that have none"),
    # Checkpoints and logs.
    "checkpoint.load": free("latest", "latest, none, a path or, in an evaluation, a step"),
    "checkpoint.every_steps": free(1000, "saved too: the end and what kNN measures", low=1),
    "checkpoint.keep": free(2, "newest checkpoints kept", low=1),
    "checkpoint.keep_every": free(0, "when positive, multiples of this step are kept for good"),
    "log.every_steps": free(10, "between two lines of metrics", low=1),
    "log.example_pairs": free(6, "pairs in the pictures of the start"),
    "profile.first_step": free(10, "of the trace", low=1),
    "profile.num_steps": free(0, "when positive, trace this many steps into workdir/profile"),
}

# Per 256 images, what linear.learning_rate=0 stands for; thesis 5.1.
LINEAR_LEARNING_RATES = {"simclr": 0.1, "simsiam": 30.0}


def get_config() -> ml_collections.ConfigDict:
    """Returns the default configuration, locked against keys it does not have."""
    config = ml_collections.ConfigDict()
    for key, setting in SETTINGS.items():
        group, _, name = key.rpartition(".")
        if group and group not in config:
            config[group] = ml_collections.ConfigDict()
        (config[group] if group else config)[name] = setting.default
    return config.lock()
