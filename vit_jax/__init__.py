"""vit_jax: Vision Transformers in JAX: train, resume, evaluate, use, and look inside."""

__version__ = '1.4.1'


def load(path, **execution):
  """The model of a run, a weight file or an address: images in, named outputs out.

  Args:
    path: a run's folder or its `model/`, a weight file, a folder of Hugging Face, or an address.
    execution: how to compute, such as dtype='bfloat16'; float32 where nothing is said.

  Raises:
    FileNotFoundError, ValueError: as `vit_jax.predict.load`.
  """
  from vit_jax import predict

  return predict.load(path, **execution)
