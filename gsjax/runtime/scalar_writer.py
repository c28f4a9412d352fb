"""A base for CLU metric writers of scalars."""

from gsjax.runtime.tensorflow_setup import metric_writers  # CLU imports TensorFlow


class ScalarWriter(metric_writers.MetricWriter):
    """Ignores everything but scalars; a subclass writes them, and defines `flush` and `close`."""

    def write_summaries(self, step, values, metadata=None):
        """Ignored."""

    def write_images(self, step, images):
        """Ignored."""

    def write_videos(self, step, videos):
        """Ignored."""

    def write_audios(self, step, audios, *, sample_rate):
        """Ignored."""

    def write_texts(self, step, texts):
        """Ignored."""

    def write_histograms(self, step, arrays, num_buckets=None):
        """Ignored."""

    def write_pointcloud(self, step, point_clouds, *, point_colors=None, configs=None):
        """Ignored."""

    def write_hparams(self, hparams):
        """Ignored: the work directory's config.json has them."""
