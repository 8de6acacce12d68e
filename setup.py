"""Package definition; the settings of the tools stand in pyproject.toml."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'vit_jax/__init__.py').read_text())[1]

setuptools.setup(
  name='vit_jax',
  version=VERSION,
  description='Vision Transformers in JAX/Flax: train, resume, fine-tune, and choose what to read',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # Recipes travel with the package: `--config=configs/vit_digits.py` works from any directory.
  packages=[*setuptools.find_packages(include=['vit_jax', 'vit_jax.*']), 'vit_jax.configs'],
  package_dir={'vit_jax.configs': 'configs'},
  package_data={'': ['*.html', '*.md']},
  install_requires=[
    'absl-py>=2.1',
    'clu>=0.0.12,<0.1',
    'flatbuffers>=24.3',
    'flax>=0.12.4,<0.13',
    'grain>=0.2.15,<0.3',
    'jax>=0.10.2,<0.12',
    'jaxtyping>=0.3',
    'matplotlib>=3.9',
    'ml-collections>=1.0,<2',
    'numpy>=2.0',
    'opencv-python-headless>=4.10',
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.11.33,<0.13',
    'pillow>=11',
    'safetensors>=0.5',
    'scikit-learn>=1.6',
    'scipy>=1.13',
    'tensorboardX>=2.6.2',
    'tensorflow-datasets>=4.9.8,<5',
    'tqdm>=4.66',
    # Regions of JPEG files; elsewhere Pillow decodes them whole, to the same pixels.
    'turbojpeg==0.0.2; platform_system == "Linux" and platform_machine == "x86_64"',
  ],
  extras_require={
    'cuda12': ['jax[cuda12]>=0.10.2,<0.12'],
    'tpu': ['jax[tpu]>=0.10.2,<0.12'],
    'tfds': ['tensorflow>=2.19'],
    'torch': ['timm>=1.0.20,<2', 'torch>=2.6,<=2.13.0', 'torchvision', 'transformers>=5,<6'],
    'hub': ['huggingface-hub>=0.30'],
    'page': ['starlette>=0.40,<2', 'uvicorn>=0.30,<1'],
    'notebooks': ['ipykernel>=6.29', 'nbclient>=0.10'],
    'benchmark': ['tensorflow>=2.19', 'timm>=1.0.20,<2', 'torch>=2.6,<=2.13.0'],
    'test': [
      'beartype>=0.20',
      'ipykernel>=6.29',
      'nbclient>=0.10',
      'pytest>=8.3',
      'pytest-xdist>=3.6',
      'starlette>=0.40,<2',
      'uvicorn>=0.30,<1',
    ],
    'browser': ['selenium>=4.20,<5'],
    'dev': ['build>=1.2', 'basedpyright>=1.31', 'ruff>=0.12'],
  },
)
