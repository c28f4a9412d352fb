"""Every setting of gsjax, once, with its default.

The defaults pre-train a small encoder by SimCLR with graded similarity on tiles of photographs
that installed packages carry. A file in `configs/` starts from `get_config()` and overrides what
differs; `--config.some.key=value` overrides on the command line. Values are numbers, strings or
booleans; a list is a comma-separated string.
"""

import ml_collections

# Settings that may change between two starts in one work directory, because the trained encoder
# does not depend on them. Everything else is compared with the directory's config.json.
HARMLESS = (
    "data.data_dir",
    "data.labelled_split",
    "data.test_split",
    "knn",
    "features",
    "linear",
    "transfer",
    "retrieval",
    "diagnostics",
    "report",
    "checkpoint",
    "log",
    "profile",
)


def get_config() -> ml_collections.ConfigDict:
    """Returns the default configuration, locked against keys it does not have."""
    config = ml_collections.ConfigDict()
    config.method = "simclr"  # simclr or simsiam
    config.seed = 5  # initial weights, data order, crops and augmentations
    config.batch_size = 128  # images per step over all devices and hosts; each gives two views
    config.num_epochs = 0  # an epoch is floor(images / batch_size) steps
    config.num_steps = 200  # when positive, the length of the run instead of num_epochs

    config.data = data = ml_collections.ConfigDict()
    data.source = "photos"  # a TFDS name such as cifar10, or folder, or photos (embedded)
    data.split = "train"  # pre-training images; for a folder: data_dir/<split>, or data_dir if ""
    data.labelled_split = "train"  # bank of kNN, training of the linear evaluation; "" for none
    data.test_split = "test"  # what both classify
    data.data_dir = ""  # TFDS directory (its own default if "") or the folder of images
    data.image_size = 32  # side S of the views in pixels
    data.memory_gb = 4.0  # TFDS splits of at most this many GB of files are kept in memory
    data.mean = "0.485,0.456,0.406"  # RGB normalisation, in [0, 1]
    data.std = "0.229,0.224,0.225"  # its divisor

    config.encoder = encoder = ml_collections.ConfigDict()
    encoder.name = "resnet18"  # resnet18, resnet34, resnet50 or resnet101
    encoder.width = 16  # channels of the first stage; 64 in the ResNet paper
    encoder.stem = "cifar"  # imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1
    encoder.dtype = "float32"  # float32, bfloat16 (compute only) or float64 (all of it)
    encoder.zero_init_residual = True  # the last BN scale of each residual block starts at 0

    config.projector = projector = ml_collections.ConfigDict()
    projector.num_layers = 2  # Linear layers; all but the last with BN and ReLU
    projector.hidden_dim = 512  # width between them
    projector.out_dim = 128  # of the embedding
    projector.last_bn = False  # BN after the last layer (SimSiam always trains with it)

    config.predictor = predictor = ml_collections.ConfigDict()
    predictor.hidden_dim = 512  # width between its two layers; SimSiam only

    config.similarity = similarity = ml_collections.ConfigDict()
    similarity.measure = "ioa"  # ioa or iou; none is the baseline, without graded similarity
    similarity.threshold = 0.5  # lambda of eq. 5: from this overlap on, views count as the same
    similarity.scale = 1.0  # of the positive term of eq. 10; 0.5 meets NT-Xent at psi = 1

    config.loss = loss = ml_collections.ConfigDict()
    loss.temperature = 0.5  # tau of NT-Xent
    loss.siamese = "mse"  # SimSiam without graded similarity: mse (eq. 3) or cosine (half of it)

    config.augment = augment = ml_collections.ConfigDict()
    augment.crop = "torchvision"  # law of the random crops: torchvision, tf or byol
    augment.min_scale = 0.08  # smallest crop area as a share of the image
    augment.max_scale = 1.0  # largest
    augment.flip = 0.5  # probability of a horizontal flip
    augment.jitter = 0.8  # probability of the colour jitter
    augment.brightness = 0.8  # strength s: a factor from 1 - s to 1 + s
    augment.contrast = 0.8  # likewise
    augment.saturation = 0.8  # likewise
    augment.hue = 0.2  # largest shift either way, in turns
    augment.grey = 0.2  # probability of a grey view
    augment.blur = 0.0  # probability of a Gaussian blur
    augment.min_sigma = 0.1  # smallest standard deviation of the blur, in pixels
    augment.max_sigma = 2.0  # largest

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "lars"  # lars or sgd
    optimizer.learning_rate = 0.3  # before scaling
    optimizer.scaling = "linear"  # linear or sqrt in batch_size / 256, or none
    optimizer.momentum = 0.9  # of LARS and SGD
    optimizer.weight_decay = 1e-6  # lars: weights only; sgd: every parameter
    optimizer.trust_coefficient = 0.001  # lars only
    optimizer.fix_pred_lr = False  # SimSiam: the predictor's learning rate does not decay

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.warmup_epochs = 10.0  # linear from 0, then cosine to 0; with num_steps at most a tenth

    config.knn = knn = ml_collections.ConfigDict()
    knn.preset = "thesis"  # thesis: k = 201, majority; instdisc: k = 200, weights exp(cos / 0.1)
    knn.k = 0  # when positive, instead of the preset's
    knn.every_epochs = 10.0  # between two measurements; the end is always measured
    knn.baselines = True  # also measure raw pixels and the untrained encoder, before the first step

    config.features = features = ml_collections.ConfigDict()
    features.batch_size = 256  # images per step of the extraction
    features.keep = True  # in workdir/features/kept, for the next job on the same encoder
    features.source = ""  # job features: as data.source; "" for the data of the pre-training
    features.data_dir = ""  # its folder
    features.split = ""  # its split; "" for data.split or, of a folder, every picture in it
    features.name = ""  # of the file; "" to make one of source and split

    config.linear = linear = ml_collections.ConfigDict()
    linear.num_epochs = 90  # over data.labelled_split
    linear.batch_size = 256  # over all devices and hosts
    linear.learning_rate = 0.0  # per 256 images; 0 for the thesis' 0.1 (simclr) or 30 (simsiam)
    linear.momentum = 0.9  # Nesterov's
    linear.min_scale = 0.08  # smallest random crop as a share of the image
    linear.flip = 0.5  # probability of a horizontal flip

    config.transfer = transfer = ml_collections.ConfigDict()
    # Names of gsjax/evaluate/datasets.py, other TFDS names, or folders of data_dir with train/ and
    # test/ that hold a folder a class.
    transfer.datasets = "cifar10,cifar100,voc2007,aircraft,cars,flowers,food,pets"  # in this order
    transfer.data_dir = ""  # TFDS directory (its own default if "") and the place of the folders
    transfer.max_examples = 0  # when positive, take a fixed random part of each split
    transfer.max_iterations = 500  # of L-BFGS for each l2 value
    transfer.memory_gb = 0.0  # for l2 values fitted at once; 0: one by one, from the last two

    config.retrieval = retrieval = ml_collections.ConfigDict()
    retrieval.datasets = "roxford5k,rparis6k"  # folders of data_dir with gnd_<name>.pkl and jpg/
    retrieval.data_dir = ""  # where they are
    retrieval.protocol = "thesis"  # thesis: S x S pixels; aspect: keep the ratio; multiscale: at 3
    retrieval.image_size = 1024  # longer side in pixels of aspect and multiscale
    retrieval.pictures = 3  # queries whose first ten results are drawn, for each data set

    config.diagnostics = diagnostics = ml_collections.ConfigDict()
    diagnostics.num_images = 2000  # pictures of data.test_split that are measured and mapped
    diagnostics.neighbours = 6  # of them whose nearest neighbours are drawn

    config.report = report = ml_collections.ConfigDict()
    report.runs = ""  # folders of further runs and sweeps, beside those under --workdir
    report.diagnostics = True  # run the job diagnostics on checkpoints that have none

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.load = "latest"  # latest, none, a step, or the path of a checkpoint
    checkpoint.every_steps = 1000  # the end is always saved
    checkpoint.keep = 2  # newest checkpoints kept
    checkpoint.keep_every = 0  # when positive, multiples of this step are kept for good

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 10  # between two lines of metrics
    log.example_pairs = 6  # pairs in the pictures of the start

    config.profile = profile = ml_collections.ConfigDict()
    profile.first_step = 10  # of the trace
    profile.num_steps = 0  # when positive, trace this many steps into workdir/profile

    return config.lock()
