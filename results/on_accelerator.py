"""Trains members of the small studies on an accelerator where TensorFlow is not installed.

Members of one seed share their crops, if they crop alike. The pipeline's are packed once; on the
machine with the accelerator NumPy cuts them out again, which their digest proves, and the library's
own compiled step trains on them. What comes back becomes work directories, which the sweep's own
command takes for trained: it makes the diagnostics and the summaries.

    python results/on_accelerator.py pack PACK             # TensorFlow and the data set
    python results/on_accelerator.py cut PACK              # NumPy and Pillow
    python results/on_accelerator.py train PACK OUT SWEEP LABEL [VALUE]   # JAX, tensorboard
    python results/on_accelerator.py unpack PACK OUT WORKDIR SWEEP        # TensorFlow
    python -m gsjax.main --job sweep --config SWEEP --workdir WORKDIR

SWEEP is a file of configs/sweeps/; LABEL and VALUE choose an arm, of which all seeds are trained.
"""

import concurrent.futures
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import platform
import sys
import time
from importlib import metadata

import numpy as np
from etils import epath

from gsjax.crops import Crops, limits_overlap
from gsjax.sweep import plans

BATCH, SIDE = 128, 32
SMALL_STUDY = "configs/sweeps/small_study.py"
ENCODED = 1024  # pictures at a time


def pack(folder):
    """Writes pictures (encoded), labels, and of each seed the crops' boxes and their digest."""
    import tensorflow as tf

    from gsjax.data import input_pipeline, sources
    from gsjax.runtime import environment

    folder.mkdir(parents=True, exist_ok=True)
    config = plans.load(SMALL_STUDY, {}).members[0].config
    for split in ("train", "test"):
        source = sources.open_source(config.data, split, labeled=True)
        rows = tf.data.Dataset.range(source.num_examples).map(source.read).as_numpy_iterator()
        pictures, labels = zip(*rows, strict=True)
        (folder / f"{split}.bin").write_bytes(b"".join(pictures))
        sizes = np.array([len(picture) for picture in pictures], np.uint16)
        np.savez_compressed(folder / f"{split}.npz", sizes=sizes, labels=np.array(labels, np.uint8))
        if split == "train":
            facts = {"num_images": source.num_examples, "file_names": source.names_digest}
            train = source
    cuts = {}
    for config in (member.config for member in plans.load(SMALL_STUDY, {}).members):
        name, steps = _cut_name(config), config.num_steps
        if name in cuts:
            continue  # the members that crop alike are equally long
        digest, boxes = hashlib.sha256(), np.zeros((steps, BATCH, 2, 4), np.uint8)
        for number, batch in enumerate(input_pipeline.train_batches(train, config, 0, steps)):
            digest.update(batch["global"].images.tobytes() + batch["index"].tobytes())
            boxes[number] = batch["global"].boxes
        np.savez_compressed(folder / f"boxes-{name}.npz", boxes)
        cuts[name] = {"seed": config.seed, "steps": steps, "digest": digest.hexdigest()}
        print(name, cuts[name], flush=True)
    about = {"commit": environment.describe()["commit"], "data": {**facts, "hosts": None}}
    (folder / "about.json").write_text(json.dumps({**about, "cuts": cuts}))


def _cut_name(config):
    """What the crops of a member depend on; they are of two views of any overlap."""
    assert not config.crops.local_views and not limits_overlap(config.crops)
    return f"{config.augment.min_scale:g}-{config.seed}"


def _decode(encoded):
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(e)).convert("RGB")) for e in encoded])


def _pixels(folder, split, pool):
    sizes = np.load(folder / f"{split}.npz")["sizes"].astype(int)
    ends, data = np.cumsum(sizes), (folder / f"{split}.bin").read_bytes()
    encoded = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    parts = [encoded[i : i + 1000] for i in range(0, len(encoded), 1000)]
    return np.concatenate(list(pool.map(_decode, parts)))


def indices_of_step(seed, step, num_images):
    """As gsjax.data.order.permuted_records."""
    epoch, place = divmod(step, num_images // BATCH)
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    return order[place * BATCH : (place + 1) * BATCH]


def crops(images, boxes):
    """Bilinear enlargement of crops as tf.image.resize computes it, in its order of operations.

    images uint8 [N, S, S, 3], boxes uint8 [N, 4] (top, left, height, width) -> uint8 like images.
    """

    def neighbors(start, length):
        scale = length.astype(np.float32) / np.float32(SIDE)
        place = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) * scale[:, None]
        place -= np.float32(0.5)
        low = np.floor(place)
        share = (place - low).astype(np.float32)
        first = np.maximum(low, 0).astype(int)
        second = np.minimum(low + 1, length[:, None] - 1).astype(int)
        return first + start[:, None], second + start[:, None], share

    top, left, height, width = boxes.astype(int).T
    upper, lower, down = neighbors(top, height)
    west, east, right = neighbors(left, width)
    n = np.arange(len(images))[:, None, None]

    def row(rows):
        start = images[n, rows[:, :, None], west[:, None, :]].astype(np.float32)
        end = images[n, rows[:, :, None], east[:, None, :]].astype(np.float32)
        return start + (end - start) * right[:, None, :, None]

    above, below = row(upper), row(lower)
    views = above + (below - above) * down[:, :, None, None]
    return np.clip(np.rint(views), 0, 255).astype(np.uint8)


def _cut(folder, name, seed, first, last):
    images = np.load(folder / "train.npy", mmap_mode="r")
    boxes = np.load(folder / f"boxes-{name}.npz")["arr_0"]
    views = np.load(folder / f"views-{name}.npy", mmap_mode="r+")
    for step in range(first, last):
        chosen = images[indices_of_step(seed, step, len(images))]
        for view in range(2):
            views[step, :, view] = crops(chosen, boxes[step, :, view])


def cut(folder):
    """Writes the decoded pictures and the views, and compares these with the pipeline's."""
    cuts = json.loads((folder / "about.json").read_text())["cuts"]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for split in ("train", "test"):
            np.save(folder / f"{split}.npy", _pixels(folder, split, pool))
        work = []
        for name, about in cuts.items():
            shape = (about["steps"], BATCH, 2, SIDE, SIDE, 3)
            np.lib.format.open_memmap(folder / f"views-{name}.npy", "w+", np.uint8, shape).flush()
            for i in range(0, about["steps"], 50):
                last = min(i + 50, about["steps"])
                work.append(pool.submit(_cut, folder, name, about["seed"], i, last))
        for part in work:
            part.result()
        seeds = [about["seed"] for about in cuts.values()]
        found = list(pool.map(_digest, [folder] * len(cuts), cuts, seeds))
    wrong = [n for n, f in zip(cuts, found, strict=True) if f != cuts[n]["digest"]]
    if wrong:
        sys.exit(f"these views are not those of the pipeline: {wrong}")
    print(f"the views are the pipeline's, by digest: {', '.join(cuts)}", flush=True)


def _digest(folder, name, seed):
    digest, views = hashlib.sha256(), np.load(folder / f"views-{name}.npy", mmap_mode="r")
    num_images = len(np.load(folder / "train.npy", mmap_mode="r"))
    for step, part in enumerate(views):
        index = indices_of_step(seed, step, num_images).astype(np.int64)
        digest.update(part.tobytes() + index.tobytes())
    return digest.hexdigest()


def _environment(about):
    """As gsjax.runtime.environment.describe, which imports TensorFlow."""
    import jax

    import gsjax

    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "gsjax": gsjax.__version__,
        "commit": about["commit"],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in names},
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind} "
        f"({jax.devices()[0].platform})",
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
    }


class KNN:
    """The monitor's accuracies, without the pipeline."""

    def __init__(self, folder, encoder, config):
        import jax

        from gsjax import augment
        from gsjax.train import step

        self.parts = {
            split: (np.load(folder / f"{split}.npy"), np.load(folder / f"{split}.npz")["labels"])
            for split in ("train", "test")
        }
        pixels = step.pixels(config)
        self._encode = jax.jit(
            lambda variables, x: (
                encoder.apply(variables, augment.normalize(x, *pixels), train=False).pooled
            )
        )
        self._raw = jax.jit(lambda _, x: augment.normalize(x, *pixels).reshape(len(x), -1))

    def _accuracy(self, encode, variables):
        from gsjax.evaluate import nearest

        features = {}
        for split, (images, labels) in self.parts.items():
            rows = [
                np.asarray(encode(variables, np.resize(part, (ENCODED, *part.shape[1:]))))
                for part in np.split(images, range(ENCODED, len(images), ENCODED))
            ]
            features[split] = np.concatenate(rows)[: len(images)], labels.astype(np.int32)
        protocol = nearest.Protocol(201, 0.0)  # knn.preset=thesis
        predicted = nearest.predict(*features["train"], features["test"][0], protocol)
        return 100 * float((predicted[:, 0] == features["test"][1]).mean())

    def of_encoder(self, variables):
        """Returns `knn/top1`."""
        return self._accuracy(self._encode, variables)

    @functools.cached_property
    def of_pixels(self):
        """`knn/pixels_top1`, the same for every seed."""
        return self._accuracy(self._raw, None)


def _prepared(config, num_images):
    """Mesh, schedule, optimizer, method, key and state of step 0, as `pretrain` has them."""
    from gsjax import methods
    from gsjax.runtime import parallel
    from gsjax.train import optimizers, step

    mesh = parallel.create_mesh(config.batch_size)
    epoch_steps = num_images // config.batch_size
    schedule = optimizers.create_schedule(config, config.num_steps, epoch_steps)
    method = methods.create_method(config)
    decay = optimizers.create_weight_decay(config, config.num_steps)
    optimizer = optimizers.create_optimizer(config, schedule, method.param_groups, decay)
    init_key, key = step.keys(config)
    state = step.create_state_fn(config, method, optimizer, mesh)(init_key)
    return mesh, schedule, optimizer, method, key, state


class Records(list):
    """Takes the place of CLU's writer."""

    def write_scalars(self, step, scalars):
        """Keeps the scalars of a step."""
        self.append({"step": step, **scalars})

    def flush(self):
        """Has nothing to do."""


def _batches(folder, config, num_images):
    views = np.load(folder / f"views-{_cut_name(config)}.npy", mmap_mode="r")
    boxes = np.load(folder / f"boxes-{_cut_name(config)}.npz")["arr_0"].astype(np.float32)
    for step, part in enumerate(zip(views, boxes, strict=True)):
        index = indices_of_step(config.seed, step, num_images)
        yield {"global": Crops(*part), "index": index}


def _train_member(folder, config, knn):
    """Returns the final state and the records of `metrics.jsonl`."""
    from gsjax.train import monitors, step
    from gsjax.train.fit import Run, fit

    num_images = len(knn.parts["train"][0])
    num_steps, epoch_steps = config.num_steps, num_images // config.batch_size
    knn_steps = math.ceil(config.knn.every_epochs * epoch_steps)
    mesh, schedule, optimizer, method, key, state = _prepared(config, num_images)

    def measure(state, check=None):
        return {"knn/top1": knn.of_encoder(method.encoder_variables(state.params, state.extra))}

    records = Records()
    records.write_scalars(0, {"knn/pixels_top1": knn.of_pixels, **measure(state)})
    run = Run(
        label=config.method,
        folder=epath.Path(folder),
        batch_size=config.batch_size,
        learning_rate=schedule,
        log_every=config.log.every_steps,
        save_every=num_steps,
        writer=records,
        holds=lambda done: False,
        save=lambda done, state: None,
        advice="",
        describe_memory=lambda compiled: f"a step of {config.batch_size} images",
        summarize=monitors.summarize,
        evaluate_after=lambda done: done == num_steps or done % knn_steps == 0,
        evaluate=measure,
    )
    program = step.create_train_step(config, method, optimizer, mesh, num_steps, epoch_steps)
    batches = _batches(folder, config, num_images)
    return fit(state, program, batches, num_steps, run, mesh, ("global",), key), records


def train(folder, out, path, label, value=None):
    """Trains all seeds of an arm; writes parameters and curves to OUT/ARM.npz after each."""
    import jax

    from gsjax import methods

    plan = plans.load(path, {})
    members = [
        m for m in plan.members if m.label == label and (value is None or m.value == float(value))
    ]
    config = members[0].config
    knn = KNN(folder, methods.create_method(config).networks["encoder"], config)
    about, out = json.loads((folder / "about.json").read_text()), pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    arm = plans.slug(label) + (f"_{float(value):g}" if value else "")
    kept, runs = {}, {}
    for member in members:
        start = {"step": 0, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        state, records = _train_member(folder, member.config, knn)
        leaves = jax.tree_util.tree_leaves_with_path((state.params, state.extra))
        for place, leaf in leaves:
            kept[f"{member.name}|{jax.tree_util.keystr(place)}"] = np.asarray(leaf)
        runs[member.name] = {"start": {**start, **_environment(about)}, "records": records}
        np.savez_compressed(out / f"{arm}.new.npz", runs=json.dumps(runs), **kept)
        (out / f"{arm}.new.npz").rename(out / f"{arm}.npz")


def unpack(folder, out, workdir, path):
    """Makes work directories of what came back.

    Their checkpoints have the optimizer's state of step 0: they are for evaluations, not for
    further training.
    """
    import jax

    from gsjax.runtime import checkpoints, files, ownership, writers

    facts = json.loads((folder / "about.json").read_text())["data"]
    members = {member.name: member for member in plans.load(path, {}).members}
    for file in sorted(pathlib.Path(out).glob("*.npz")):
        content = np.load(file)
        for name, run in json.loads(str(content["runs"])).items():
            if name not in members:
                continue
            own, config = files.absolute(workdir) / name, members[name].config
            *_, state = _prepared(config, facts["num_images"])
            trained = jax.tree_util.tree_map_with_path(
                lambda place, leaf, c=content, n=name: jax.device_put(
                    c[f"{n}|{jax.tree_util.keystr(place)}"], leaf.sharding
                ),
                (state.params, state.extra),
            )
            count = jax.device_put(np.int32(config.num_steps), state.step.sharding)
            state = state.replace(params=trained[0], extra=trained[1], step=count)
            ownership.claim(own, config, facts)
            files.write_text(own / "environment.json", json.dumps([run["start"]], indent=1))
            writer = writers.create_writer(own, 0)
            for record in run["records"]:
                writer.write_scalars(record.pop("step"), record)
            writer.flush()
            saved = checkpoints.Checkpoints(own, 1, 0)
            saved.save(config.num_steps, state, writer)
            writer.close()
            print(f"{own}: step {config.num_steps}", flush=True)


if __name__ == "__main__":
    verbs = {"pack": pack, "cut": cut, "train": train, "unpack": unpack}
    if len(sys.argv) < 3 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
