"""Sections of the lab's page: which differences are real, which conclusions of the study hold."""

from vit_jax.explore import compare
from vit_jax.explore.claims import claims, level_of
from vit_jax.explore.compare import Results
from vit_jax.explore.lab import Lab
from vit_jax.explore.page import Block, Heading, Table, Text


def comparisons(results: Results) -> list[Block]:
  """The best whole readout against every other; what so many examples can tell apart."""
  if not results.comparisons:
    return []
  rows = [
    [f'{c.a} - {c.b}', f'{100 * c.difference:+.2f}', f'{100 * c.low:+.2f} to {100 * c.high:+.2f}',
     f'{c.p:.3g}', f'{c.p_holm:.3g}', f'{100 * c.detectable:.2f}',
     'no difference' if c.needed is None else f'{c.needed:,}', c.verdict]
    for c in results.comparisons
  ]  # fmt: skip
  unclear = [c.b for c in results.comparisons if c.p_holm >= compare.ALPHA]
  best, n = results.comparisons[0].a, results.records[0]['n_examples']
  words = (
    f'{n} test examples are too few to tell {best} from {", ".join(unclear)}.'
    if unclear
    else f'{n} test examples tell {best} from every other readout here.'
  )
  return [
    Heading('Are the differences real?'),
    Text(words),
    Table(['pair', 'points', '95 % (paired bootstrap)', 'p (permutation)', 'p (Holm)',
           'smallest visible', 'examples needed', 'verdict'], rows),
    Text(f'{len(rows)} comparisons of the best readout with the others, on the same examples; '
         'controls and single patches are left out. The winner was found on the same examples, '
         f'which favours it. Smallest visible: the difference, in points, that {n} examples show '
         'in four of five such test sets; examples needed: so many show the difference seen as '
         'often.'),
  ]  # fmt: skip


def conclusions(lab: Lab, results: Results) -> list[Block]:
  """What the token-readout study concluded, and whether it holds here."""
  rows = claims(lab, results)
  if not rows:
    return []
  level = level_of(len(rows))
  return [
    Heading('The conclusions of the token-readout study'),
    Table(['claim', 'our measure', 'verdict'],
          [[row['claim'], row['measure'], row['verdict']] for row in rows]),
    Text(f'Each interval is at {level:.2%}, so that with a chance of 95 % all {len(rows)} hold '
         'what they should (Bonferroni).'),
  ]  # fmt: skip
