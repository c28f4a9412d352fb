"""The job `export`: the encoder in the formats of other programs.

Every file is read back and must give the encoder's own representations or, of a fine-tuned network,
its own logits.
"""

import json
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy
from etils import epath

import gsjax
from gsjax import augment
from gsjax.config import choices
from gsjax.data import transforms
from gsjax.errors import UserError
from gsjax.evaluate import classifier, evaluation, finetuned, foreign, model_card, programs
from gsjax.models import ENCODERS, create_encoder, fit_image_size, weights
from gsjax.models.weights import names, pytorch
from gsjax.runtime import files, metrics, parallel
from gsjax.train import step

_TOLERANCE = 1e-4  # of the largest output; programs add up in different orders
_IMAGES = 2  # compared


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes `workdir/export/`: weights, `config.json`, a model card, and what else is asked for.

    Raises:
      UserError: the encoder has no names in PyTorch, or is to be exported fine-tuned but is not; a
        file cannot be written, or what was written does not give the same outputs.
    """
    with evaluation.open_evaluation(config, workdir, "export") as job:
        network = finetuned.read(job) if config.export.finetuned else None
        parallel.from_primary(lambda: _Export(config, job, network).write())


class _Export:
    """One encoder, perhaps fine-tuned and with a head, and the folder it goes to."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        job: evaluation.Evaluation,
        network: finetuned.Finetuned | None,
    ) -> None:
        name = config.encoder.name
        if not ENCODERS[name].names:
            raise UserError(
                f"encoder.name={name} cannot be exported: its row names no module with the names "
                "of its weights in PyTorch"
            )
        self._config = config.copy_and_resolve_references()
        with self._config.unlocked():
            self._config.encoder.dtype = "float32"  # as other programs have it
        self._job, self._folder = job, job.workdir / "export"
        self._new = job.workdir / "export.new"
        self._remarks: dict[str, str] = {}  # about the files written, by name
        self._module = create_encoder(self._config)
        self._normalization = step.pixels(self._config)
        self._family = weights.family(name)
        if config.export.detectron2 and not hasattr(self._family, "detectron2_name"):
            raise UserError(f"export.detectron2: Detectron2 has no names for {name}; leave it out")
        self._size = config.data.image_size
        self._finetuned = network
        variables = network.variables if network else jax.device_get(job.encoder.variables)
        variables = fit_image_size(self._module, variables, self._size)
        self._num_features = classifier.num_features(job.encoder, self._size)
        self._timm = self._family.timm_config(config.encoder, self._size)
        self._network = jax.tree.map(_as_float32, (variables, network.head if network else None))
        shape = (_IMAGES, self._size, self._size, 3)
        self._images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self._expected = self._encode(self._network)

    def write(self) -> None:
        """Writes all files and compares what they give; an earlier export stays until then."""
        with files.write_errors(self._folder):
            if self._new.exists():
                self._new.rmtree()
            self._new.mkdir(parents=True)
        try:
            self._write_all()
            with files.write_errors(self._folder):
                self._replace()
        finally:
            if self._new.exists():
                self._new.rmtree()
        if architecture(self._config) is None:
            metrics.log(
                "note     torchvision and timm have no architecture with this stem, width or "
                "padding; names and layouts of the weights are theirs all the same"
            )

    def _write_all(self) -> None:
        variables, head = self._network
        tensors = names.to_tensors(variables, self._family.module_name)
        if head:
            weight, bias = self._head_keys()
            tensors |= {weight: np.ascontiguousarray(head["kernel"].T), bias: head["bias"]}
        stored = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        self._write("config.json", _json(self._description()))
        self._write("model.safetensors", stored, self._read_weights)
        settings = self._config.export
        if settings.stablehlo:
            program = programs.stablehlo(self._from_pixels, self._size)
            self._write("encoder.stablehlo", program, self._run_stablehlo)
        if settings.onnx:
            program = programs.onnx(self._from_normalized, self._size)
            self._write("encoder.onnx", program, self._run_onnx)
        if settings.detectron2:
            rename = self._family.detectron2_name
            content = {
                "model": {rename(key): value for key, value in tensors.items()},
                "__author__": "gsjax",
                "matching_heuristics": True,
            }
            self._write("detectron2.pkl", pickle.dumps(content, 4), self._read_detectron2)
        card = model_card.create(
            self._config,
            self._job,
            architecture(self._config),
            self._num_features,
            [*self._remarks, "README.md"],
            self._finetuned,
        )
        self._write("README.md", card.encode())

    def _write(
        self, name: str, content: bytes, read: Callable[[epath.Path], np.ndarray] | None = None
    ) -> None:
        """Writes a file, and compares the outputs that `read` gets from it."""
        path = self._new / name
        with files.write_errors(self._folder / name):
            files.write_bytes(path, content)
        self._remarks[name] = ""
        if read:
            error = np.abs(read(path) - self._expected).max() / np.abs(self._expected).max()
            if not error <= _TOLERANCE:
                raise UserError(
                    f"{name} would give other {self._outputs}s than the encoder (up to {error:.1e} "
                    "of the largest); nothing was exported"
                )
            equal = f"equal up to {error:.1e} of the largest {self._outputs}"
            self._remarks[name] = f", read back: {equal}"

    def _replace(self) -> None:
        """Puts the new files in the place of those of an earlier export."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in model_card.FILES.keys() - self._remarks.keys():
            if (self._folder / name).exists():
                (self._folder / name).unlink()
                metrics.log(f"removed  {files.shown(self._folder / name)} of an earlier export")
        for name, remark in self._remarks.items():
            (self._new / name).replace(self._folder / name)
            metrics.log(f"wrote    {files.shown(self._folder / name)}{remark}")

    def _description(self) -> dict[str, Any]:
        """Returns the content of `config.json`, which timm and gsjax read."""
        config, name = self._config, architecture(self._config)
        transform = transforms.of_config(config)
        timm, network = self._timm, self._finetuned
        num_classes = network.num_classes if network else 0
        origin = self._job.origin()
        if network:
            origin |= {"finetuned_on": network.claim["train"]}
        mean, std, _ = self._normalization
        settings = {
            **{f"encoder.{key}": v for key, v in choices.encoder_settings(config).items()},
            **{f"data.{key}": config.data[key] for key in ("image_size", "mean", "std")},
            **{f"features.{key}": config.features[key] for key in ("interpolation", "crop_pct")},
        }
        return {
            **({"architecture": name} if name else {}),
            "num_classes": num_classes,
            **({"label_names": network.class_names} if network and network.class_names else {}),
            "num_features": self._num_features,
            "global_pool": timm["global_pool"],
            **({"model_args": timm["model_args"]} if "model_args" in timm else {}),
            "pretrained_cfg": {
                "num_classes": num_classes,
                "input_size": [3, self._size, self._size],
                "mean": list(mean),
                "std": list(std),
                "interpolation": transform.method,
                "crop_pct": self._size / transform.short_side,
                "first_conv": timm["first_conv"],
                "classifier": timm["classifier"],
            },
            "gsjax": {"version": gsjax.__version__, **origin, "settings": settings},
        }

    @property
    def _outputs(self) -> str:
        return "logit" if self._finetuned else "representation"

    def _head_keys(self) -> tuple[str, str]:
        """Returns the names of the head's tensors in torchvision and timm."""
        return f"{self._timm['classifier']}.weight", f"{self._timm['classifier']}.bias"

    def _apply(self, network: Any, inputs: jax.Array) -> jax.Array:
        variables, head = network
        outputs: Any = self._module.apply(variables, inputs, train=False)
        return classifier.logits(outputs.pooled, head) if head else outputs.pooled

    def _from_pixels(self, images: jax.Array) -> jax.Array:
        inputs = augment.normalize(images, *self._normalization)
        return self._apply(self._network, inputs)

    def _from_normalized(self, images: jax.Array) -> jax.Array:
        return self._apply(self._network, jnp.transpose(images, (0, 2, 3, 1)))

    def _encode(self, network: Any) -> np.ndarray:
        inputs = augment.normalize(jnp.asarray(self._images), *self._normalization)
        return np.asarray(jax.jit(self._apply)(network, inputs))

    def _read_weights(self, path: epath.Path) -> np.ndarray:
        target = foreign.abstract(self._module, self._size)
        found = weights.find(path.parent.as_posix())
        variables, head = weights.variables(found, target), None
        if self._finetuned:
            weight, bias = (found.content.tensors[key].array() for key in self._head_keys())
            head = {"kernel": weight.T, "bias": bias}
        return self._encode((variables, head))

    def _run_stablehlo(self, path: epath.Path) -> np.ndarray:
        return programs.run_stablehlo(path.read_bytes(), self._images)

    def _run_onnx(self, path: epath.Path) -> np.ndarray:
        mean, std, _ = self._normalization
        inputs = (self._images / 255 - np.array(mean)) / np.array(std)
        return programs.run_onnx(path.read_bytes(), inputs.transpose(0, 3, 1, 2))

    def _read_detectron2(self, path: epath.Path) -> np.ndarray:
        stored = pytorch.load(path.read_bytes()).tensors
        target = foreign.abstract(self._module, self._size)
        module_name, rename = self._family.module_name, self._family.detectron2_name

        def place(key: str) -> str:
            return f"model.{rename(key)}"

        shapes = names.to_shapes(target, module_name)
        found = {key: stored[place(key)].shape for key in shapes}
        variables = names.to_variables(
            target, found, lambda key: stored[place(key)].array(), module_name, place
        )
        return self._encode((variables, None))


def architecture(config: ml_collections.ConfigDict) -> str | None:
    """Returns torchvision's and timm's name of the encoder, or None if they do not have it."""
    return weights.family(config.encoder.name).architecture(config.encoder)


def _as_float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
