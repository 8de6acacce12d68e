"""What a command says while it works: plain lines on stderr, without what its libraries say."""

from logging import Formatter, getLogger

from absl import flags, logging


def show() -> None:
  """Shows messages of level INFO as they are; call it once, when a command starts."""
  flags.FLAGS.mark_as_parsed()  # Else absl begins with a warning; a command may still parse some.
  logging.use_absl_handler()
  logging.get_absl_handler().setFormatter(Formatter('%(message)s'))
  getLogger('jax').setLevel('WARNING')  # Else it lists the backends that are not there.
  getLogger('matplotlib').setLevel('WARNING')  # Else it says that it looked for fonts.
  logging.set_verbosity(logging.INFO)
