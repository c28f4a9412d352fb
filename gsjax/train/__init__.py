"""The training state, the step, the loop and the job `pretrain`; the table of optimizers.

Importing it loads neither an optimizer nor JAX. An optimizer is a function (settings,
learning_rate, weight_decay) -> optax.GradientTransformation; it takes the settings group
`optimizer` and two numbers or schedules.
"""

from gsjax.config.schema import Row, shapes

OPTIMIZERS: dict[str, Row] = {
    "lars": Row(
        "gsjax.train.optimizers",
        "layer-wise rates for large batches (You et al. 2017)",
        {
            "optimizer.trust_coefficient": shapes(0.001, "lars only"),
            "optimizer.rate_after_momentum": shapes(
                False, "lars only: the learning rate multiplies the momentum, as in BYOL's recipe"
            ),
        },
        function="lars",
    ),
    "adamw": Row(
        "gsjax.train.optimizers",
        "Adam with decoupled weight decay (Loshchilov and Hutter 2019)",
        {"optimizer.beta2": shapes(0.999, "adamw: decay of the squared gradients", high=0.999999)},
        function="adamw",
    ),
    "sgd": Row("gsjax.train.optimizers", "SGD with momentum, as in PyTorch", function="sgd"),
}
