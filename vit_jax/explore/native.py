"""How weights were trained to be read, compared with how they were read: lines of the report."""

from vit_jax.explore import compare
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import Lab
from vit_jax.explore.page import Text
from vit_jax.models.readout import READOUTS, class_of


def lines(lab: Lab, last: Results) -> list[Text]:
  """A line for each way in which the head of the weights reads otherwise than the probes did.

  The readout was not read, or only with other words behind its name, or is not the best; tokens
  were read without the norm that it sees, or are not those of the last block; it has a layer before
  the head.
  """
  name, inner = name_of(lab), compare.words_of(last.layer, lab.depth)
  if name is None:
    return []
  section = lab.predictor.passport.model
  found = [mismatch(name, last)]
  if lab.config.explore.token_norm == 'none':
    found.append('Their own head reads tokens behind the norm after the last block; these are not.')
  if inner:
    found.append(f'Their own head reads the tokens of the last block; these are of {inner}.')
  if section.get('pre_logits'):
    found.append(
      f'Their own head has a tanh layer of {section["pre_logits"]} before it; probes have none.'
    )
  return [Text(line) for line in found if line]


def name_of(lab: Lab) -> str | None:
  """The readout of the weights by the name that the lab has for it; None: they tell none."""
  section, name = lab.predictor.passport.model, lab.predictor.passport.readout
  if name is None:
    return None
  row, *words = name.split('+')
  if section.get('readout_weights') == 'softmax' and f'{row}_softmax' in READOUTS:
    row += '_softmax'
  if class_of(row).numbered:
    row += f'_{section["patch_index"]}'
  return '+'.join([row, *words])


def mismatch(name: str, last: Results) -> str | None:
  """What differs between the readout of the weights and those that were compared; None: nothing."""
  record, best = last.record(name), last.records[0]['readout']
  if record is not None:
    here = f'{record["accuracy"]:.2%} here'
    return None if name == best else (
      f'The weights were trained to be read by {name} ({here}), not by {best}.'
    )  # fmt: skip
  row = name.partition('+')[0]
  others = [other for other in last.names if other.partition('+')[0] == row]
  also = f', only as {", ".join(others)}' if others else ''
  return f'The weights were trained to be read by {name}, which was not read here{also}.'
