"""A page of this machine on which pictures are dropped: classes, rollout and atlas of each.

python -m vit_jax.interpret serve CHECKPOINT [--host=127.0.0.1] [--port=8765] [--token=WORD]

Programs ask the same way as the page does: `curl --data-binary @FILE ADDRESS/pictures` answers in
JSON, with the addresses of rollout and atlas. Nothing is written, and nothing but the last few
pictures is kept, in memory. Another host than loopback needs a token, which every request brings.
"""

import argparse
import asyncio
from concurrent import futures
import contextlib
import errno
import socket
from typing import Any

from vit_jax import predict
from vit_jax.interpret import pages
from vit_jax.interpret.access import Access, Guard, make_access
from vit_jax.interpret.live import Limits, Live, Refused
from vit_jax.runtime import compilation, optional

PORT = 8765
READ = 4  # times the allowed bytes are read, so that a browser that sends them sees the answer


def parse(words: list[str]) -> argparse.Namespace:
  """The options of the command, `words` being all that stands behind `vit_jax.interpret`."""
  parser = argparse.ArgumentParser(
    'python -m vit_jax.interpret serve',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('what')
  parser.add_argument('checkpoint', help='a run, a weight file, or an address')
  parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0: all of this machine, by token')
  parser.add_argument('--port', type=int, default=PORT, help='0: any that is free')
  parser.add_argument(
    '--token', default='', help='that every request must bring; made where it is needed'
  )
  normal = Limits()
  say = {
    'file_megabytes': 'the most that the file of a picture has',
    'megapixels': 'the most that a picture has',
    'keep': 'pictures that are kept; the oldest are forgotten',
    'megabytes': 'the most that the atlas of a picture has',
  }
  for key, help in say.items():
    value = getattr(normal, key)
    parser.add_argument(f'--{key}', type=type(value), default=value, help=f'{help} (else {value})')
  return parser.parse_args(words)


def serve(options: argparse.Namespace) -> None:
  """Answers requests until Ctrl-C.

  Raises:
    ValueError, OSError: an option, a port that is taken, weights that cannot be read, or the extra
      `page` is not installed.
  """
  optional.load('uvicorn', 'page')
  access = make_access(options.host, options.token)
  limits = Limits(options.file_megabytes, options.megapixels, options.keep, options.megabytes)
  compilation.keep()
  with listen(options.host, options.port) as listening:
    print(f'reading {options.checkpoint} and compiling ...', flush=True)
    live = Live(predict.load(options.checkpoint), str(options.checkpoint), limits)
    server = make_server(live, access)
    print(f'open {address(access, listening.getsockname()[1])}   (Ctrl-C ends)', flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      server.run(sockets=[listening])


def make_server(live: Live, access: Access) -> Any:
  """A server of uvicorn, which answers once its `run(sockets=[...])` is called."""
  uvicorn = optional.load('uvicorn', 'page')
  config = uvicorn.Config(
    Guard(make_application(live), access), http='h11', ws='none', lifespan='off',
    log_level='warning', access_log=False, server_header=False,
  )  # fmt: skip
  return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
  """A socket that takes connections, before any weights are read.

  Raises:
    ValueError: the port is taken or may not be used, or the host is not this machine's.
  """
  if not 0 <= port <= 65535:  # The system would take it modulo 65536.
    raise ValueError(f'--port={port} must be 0 to 65535')
  try:
    family, _, _, _, place = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(place[:2], family=family)
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      remedy = f'is taken: give another one, --port={port + 1}, or any that is free, --port=0'
      raise ValueError(f'port {port} of {host} {remedy}') from None
    raise ValueError(
      f'--host={host} --port={port} cannot be listened on ({error.strerror}): give an address of '
      'this machine and a port from 1024 on'
    ) from None


def address(access: Access, port: int) -> str:
  """The address that a person opens, with the token."""
  host = reached_at() if access.host in ('0.0.0.0', '::') else access.host
  place = f'[{host}]' if ':' in host else host
  return f'http://{place}:{port}/' + (f'?token={access.token}' if access.token else '')


def reached_at() -> str:
  """The address under which other machines reach this one, else its name."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('192.0.2.1', 9))  # Chooses a way out; nothing is sent.
    except OSError:
      return socket.gethostname()
    return probe.getsockname()[0]


class Site:
  """What each address answers; the model is asked by one thread, so by one request at a time."""

  def __init__(self, live: Live):
    self._live = live
    self._worker = futures.ThreadPoolExecutor(1, 'model')
    self._responses = optional.load('starlette.responses', 'page')

  async def page(self, request: Any) -> Any:
    """The page itself."""
    del request
    text = pages.filled('serve.html', self._live.about())
    return self.html(text, img_src='blob: data:', connect_src="'self'", frame_src="'self'")

  async def add(self, request: Any) -> Any:
    """JSON of a picture, whose file is the body; `?top=5` classes of it."""
    try:
      top = int(request.query_params.get('top', 5))
    except ValueError:
      top = 0
    if top < 1:
      raise Refused(400, '?top= must be a whole number from 1 on')
    data = await body_of(request, self._live.limits.size)
    return self._responses.JSONResponse(await self.ask(self._live.add, data, top))

  async def show(self, request: Any) -> Any:
    """The rollout (PNG) or the atlas (a page) of a picture."""
    name = request.path_params['part']
    content = await self.ask(self._live.show, request.path_params['word'], name)
    if name == 'atlas':
      return self.html(content.decode(), img_src='data:', frame_ancestors="'self'")
    return self._responses.Response(content, media_type='image/png')

  async def ask(self, function: Any, *arguments: Any) -> Any:
    """What a function returns in the thread that the model belongs to."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self._worker, function, *arguments)

  def html(self, text: str, **sources: str) -> Any:
    """A page, with the policy that lets its own script run."""
    sources = {'frame_ancestors': "'none'"} | sources
    policy = {'content-security-policy': pages.policy(text, **sources)}
    return self._responses.HTMLResponse(text, headers=policy)

  async def failed(self, request: Any, error: Exception) -> Any:
    """JSON of what went wrong; the server goes on."""
    del request
    status = getattr(error, 'status', None) or getattr(error, 'status_code', 500)
    reason = getattr(error, 'detail', None) or str(error).partition('\n')[0] or repr(error)
    told = reason if status < 500 else f'the server failed ({type(error).__name__}: {reason})'
    return self._responses.JSONResponse({'error': told}, status)


def make_application(live: Live) -> Any:
  """The ASGI application: the page, and what it asks for."""
  applications = optional.load('starlette.applications', 'page')
  errors = optional.load('starlette.exceptions', 'page')
  gone = optional.load('starlette.requests', 'page').ClientDisconnect
  route, site = optional.load('starlette.routing', 'page').Route, Site(live)
  routes = [
    route('/', site.page),
    route('/pictures', site.add, methods=['POST']),
    route('/pictures/{word}/{part}', site.show),
  ]
  kinds = (Refused, errors.HTTPException, gone, Exception)
  return applications.Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, site.failed))


async def body_of(request: Any, most: int) -> bytes:
  """The body of a request, of at most so many bytes; what is beyond is read and dropped.

  Raises:
    Refused: it is larger, or a form.
  """
  if request.headers.get('content-type', '').startswith('multipart/'):
    raise Refused(415, 'send the file itself as the body, no form: curl --data-binary @FILE')
  too_large = Refused(413, f'the file has more than the {most / 1e6:g} MB that are allowed')
  if int(request.headers.get('content-length', 0)) > READ * most:
    raise too_large
  data, size = bytearray(), 0
  async for part in request.stream():
    size += len(part)
    if size <= most:
      data += part
    elif size > READ * most:
      raise too_large
  if size > most:
    raise too_large
  return bytes(data)
