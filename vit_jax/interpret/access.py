"""Who may ask a page that this machine serves, by name, origin and token; what every answer says.

A page of another site, open in the same browser, reaches this machine too. It cannot call it by
our name (DNS rebinding: a name of its own that points here), and a browser says where a request
comes from (`Origin`, `Sec-Fetch-Site`): both are checked before anything is read.
"""

from collections.abc import Mapping
import dataclasses
import ipaddress
import json
import secrets
import socket
from typing import Any
import urllib.parse

Refusal = tuple[int, str]
SAFE = ('GET', 'HEAD')  # methods that change nothing
SHORTEST = 16  # letters of a token that a person chooses
BUSY = 32  # requests at a time, of those that may ask; more get status 503
HEADERS = {
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',  # The token may stand in the address.
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
}


@dataclasses.dataclass(frozen=True)
class Access:
  """Which requests are answered.

  Attributes:
    host: the name or address that the server listens on.
    token: what every request must bring, in the address (`?token=`) or as `Authorization: Bearer`;
      '': nothing, on loopback alone.
  """

  host: str
  token: str

  def refusal(self, method: str, headers: Mapping[str, str], query: str) -> Refusal | None:
    """The status and the reason with which a request is refused; None: it is answered."""
    named = headers.get('host', '')
    if not self.knows(named):
      return 403, f'this server is not called {named!r}: open the address that it printed'
    if method not in SAFE and not from_here(headers):
      return 403, 'a page of another site may not ask this server'
    if self.token and not secrets.compare_digest(given(headers, query), self.token.encode()):
      return 401, 'this needs the token that the server printed: open its whole address'
    return None

  def knows(self, named: str) -> bool:
    """Whether a `Host` header names this server: as it was told, or by an address, not a name."""
    try:
      name = (urllib.parse.urlsplit(f'//{named}').hostname or '').rstrip('.')
    except ValueError:
      return False
    if is_loopback(name):
      return True
    ours = (self.host.lower(), socket.gethostname().lower())
    return not is_loopback(self.host) and (name in ours or is_address(name))


def make_access(host: str, token: str) -> Access:
  """Who may ask a server on `host`; a token is made where one is needed and none is given.

  Raises:
    ValueError: the token is short, or cannot stand in an address as it is.
  """
  if token and (len(token) < SHORTEST or urllib.parse.quote(token, safe='') != token):
    raise ValueError(
      f'--token needs {SHORTEST} letters or more, of A-Z, a-z, 0-9 and -._~ : leave it out on '
      'another host than loopback, and a random one is made'
    )
  if not token and not is_loopback(host):
    token = secrets.token_urlsafe(24)
  return Access(host, token)


def is_address(name: str) -> bool:
  """Whether a name is an address, 192.168.1.5 or fe80::1, which no other site can point here."""
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def is_loopback(name: str) -> bool:
  """Whether a name leads to the own machine alone."""
  return name.lower() == 'localhost' or (
    is_address(name) and ipaddress.ip_address(name).is_loopback
  )


def from_here(headers: Mapping[str, str]) -> bool:
  """Whether a request comes from a page of this server, or from no page at all."""
  if headers.get('sec-fetch-site', 'none') not in ('same-origin', 'none'):
    return False
  origin = headers.get('origin')
  return origin is None or origin.partition('://')[2] == headers.get('host')


def given(headers: Mapping[str, str], query: str) -> bytes:
  """The token that a request brings; empty where there is none."""
  kind, _, value = headers.get('authorization', '').partition(' ')
  if kind.lower() == 'bearer':
    return value.strip().encode()
  return urllib.parse.parse_qs(query).get('token', [''])[-1].encode()


class Guard:
  """An ASGI application in front of another, which sees what `Access` does not refuse.

  Every answer, of the other's errors too, has HEADERS, but for those that it sets itself. Only who
  may ask is counted: others cannot keep the server busy.
  """

  def __init__(self, application: Any, access: Access):
    self._application, self._access, self._asked = application, access, 0

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Answers one request."""

    async def send_safely(message):
      if message['type'] == 'http.response.start':
        own = {name for name, _ in message['headers']}
        more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
        message = message | {'headers': [*message['headers'], *more]}
      await send(message)

    refused = self._refusal(scope)
    if refused is None:
      self._asked += 1
      try:
        await self._application(scope, receive, send_safely)
      finally:
        self._asked -= 1
      return
    body = json.dumps({'error': refused[1]}).encode()
    told = [(b'content-type', b'application/json'), (b'content-length', b'%d' % len(body))]
    await send_safely({'type': 'http.response.start', 'status': refused[0], 'headers': told})
    await send_safely({'type': 'http.response.body', 'body': body})

  def _refusal(self, scope: Any) -> Refusal | None:
    """As that of `Access`, and where too many ask at a time."""
    headers = {key.decode('latin-1'): value.decode('latin-1') for key, value in scope['headers']}
    query = scope['query_string'].decode('latin-1')
    refused = self._access.refusal(scope['method'], headers, query)
    if refused is None and self._asked >= BUSY:
      return 503, f'{BUSY} requests are being answered: ask again in a while'
    return refused
