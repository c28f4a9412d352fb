"""The training state, the step, the loop and the job `pretrain`."""
