"""A report as blocks, written twice: Markdown with pictures beside it, one self-contained HTML."""

import base64
from collections.abc import Sequence
import dataclasses
import html
import pathlib

STYLE = (
  'body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;'
  'color:#222}p{max-width:60em}.wide{overflow-x:auto}'  # Only what is still too wide scrolls.
  'table{border-collapse:collapse;margin:1em 0;font-size:13px}'
  'td,th{border-bottom:1px solid #ddd;padding:.2em .5em;text-align:left;vertical-align:bottom}'
  'td{white-space:normal;overflow-wrap:break-word}th{border-bottom:2px solid #888}'
  'img{max-width:100%}figcaption{color:#555}'
)


@dataclasses.dataclass(frozen=True)
class Heading:
  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  header: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
  path: pathlib.Path
  caption: str


Block = Heading | Text | Table | Picture


def markdown(blocks: Sequence[Block], folder: pathlib.Path) -> str:
  """The page; pictures by their path from `folder`."""
  return '\n\n'.join(_markdown(block, folder) for block in blocks) + '\n'


def _markdown(block: Block, folder: pathlib.Path) -> str:
  if isinstance(block, Heading):
    return f'{"#" * block.level} {block.text}'
  if isinstance(block, Text):
    return block.text
  if isinstance(block, Picture):
    return f'![{block.caption}]({block.path.relative_to(folder).as_posix()})\n\n*{block.caption}*'
  rows = [block.header, ['---'] * len(block.header), *block.rows]
  return '\n'.join('| ' + ' | '.join(c.replace('|', '\\|') for c in row) + ' |' for row in rows)


def self_contained(blocks: Sequence[Block], title: str) -> str:
  """The page with its pictures inside."""
  body = '\n'.join(_html(block) for block in blocks)
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
    f'</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
  )


def _html(block: Block) -> str:
  if isinstance(block, Heading):
    return f'<h{block.level}>{html.escape(block.text)}</h{block.level}>'
  if isinstance(block, Text):
    return f'<p>{html.escape(block.text)}</p>'
  if isinstance(block, Picture):
    content = base64.b64encode(block.path.read_bytes()).decode()
    caption = html.escape(block.caption)
    return (
      f'<figure><img alt="{caption}" src="data:image/png;base64,{content}">'
      f'<figcaption>{caption}</figcaption></figure>'
    )
  head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in block.header)
  rows = ''.join(
    '<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>'
    for row in block.rows
  )
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
  )
