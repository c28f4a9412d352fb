"""The network that the job `finetune` left behind, for the job `export`."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from gsjax.errors import UserError
from gsjax.evaluate import classifier
from gsjax.evaluate.evaluation import Evaluation
from gsjax.runtime import checkpoints, files, parallel, saved_state
from gsjax.train import finetune_step
from gsjax.train.step import seed_key


class Finetuned(NamedTuple):
    """A fine-tuned network.

    Attributes:
      variables: those of its encoder.
      head: `kernel` [F, C] and `bias` [C].
      claim: what its training depended on, and `num_classes`, `class_names` (or None), `num_train`
        and `num_steps`.
    """

    variables: Any
    head: dict[str, np.ndarray]
    claim: Mapping[str, Any]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.head["bias"])

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in the order of the logits; None if they have none."""
        return self.claim["class_names"]

    def is_result(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of `results/finetune.json` is this network's."""
        protocol = entry.get("protocol", {})
        known = protocol.keys() & self.claim.keys()
        return bool(known) and all(protocol[name] == self.claim[name] for name in known)


def read(job: Evaluation) -> Finetuned:
    """Reads the network that was fine-tuned from the job's encoder; every host must call it.

    Raises:
      UserError: there is none, or its training is not finished.
    """
    folder = job.folder_of("finetune")
    claim = parallel.from_primary(lambda: _read_claim(job))
    encoder, num_steps = job.encoder, claim["num_steps"]
    if not parallel.from_primary(lambda: num_steps in checkpoints.saved_steps(folder)):
        raise UserError(
            f"export.finetuned: the training in {folder} has not reached step {num_steps}: rerun "
            "--job finetune to finish it"
        )
    size = classifier.num_features(encoder, job.config.data.image_size)
    create = finetune_step.create_state_fn(
        (size, claim["num_classes"]), encoder.normalization[2], optax.identity(), encoder.mesh
    )
    state = create.eval_shape(seed_key(0), encoder.variables)
    target = {"params": state.params, "extra": state.extra}
    checkpoint = checkpoints.find(folder, str(num_steps))
    assert checkpoint is not None
    parts = jax.device_get(saved_state.read(checkpoint, target, partial=True))
    variables = finetune_step.encoder_variables(parts["params"], parts["extra"])
    return Finetuned(variables, parts["params"]["head"], claim)


def _read_claim(job: Evaluation) -> dict[str, Any]:
    file = job.folder_of("finetune") / classifier.CLAIM
    try:
        claim = json.loads(file.read_text()) if file.exists() else {}
        is_ours = claim.get("encoder") == job.encoder.digest
    except files.error_types(ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {files.reason(error)}") from error
    if not is_ours:
        raise UserError(
            f"export.finetuned: {file.parent} has no network fine-tuned from this encoder: run "
            "--job finetune first"
        )
    return claim
