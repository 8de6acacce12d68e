"""vit_jax: Vision Transformers in JAX: train, resume, evaluate, use, and look inside."""

__version__ = '0.2.0'


def load(path):
  """The trained model of a run's folder: images in, named outputs out (`vit_jax/predict.py`)."""
  from vit_jax import predict

  return predict.load(path)
