"""The ASGI layer that every request passes before the application: address, host, origin, key, scope, rate, audit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import origins
from api.access.addresses import client_address, limit_key, networks
from api.access.audit import Audit
from api.access.buckets import Decision
from api.access.config import AccessSettings
from api.access.keys import KeyInfo, KeyStore, KeyStoreError, keys_file
from api.access.principals import SCOPE_KEY, Access, Limits, Principal, anonymous, rate_limited
from api.access.scopes import allows, is_below, is_loopback, required_scope
from api.access.tokens import LOOKS_LIKE_KEY, Token, parse_token
from api.errors import ApiError, FieldError, Problem, problem_response

LOGGER = logging.getLogger("explorer.api")
_CACHED_KEYS: Final = 10_000
_TOUCH_SECONDS: Final = 60.0
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="post-explorer"'}


def keys_required(settings: AccessSettings, host: str) -> bool:
    """Whether data need a key: by setting, and always where others than this machine's users may reach the service.

    Behind a proxy the service may listen on loopback and still be public.
    """
    return settings.require_key or not is_loopback(host) or bool(settings.trusted_proxies)


class AccessLayer:
    """Refuses what may not pass, in the one error shape; tells the rest who asks (`principals.access_of`).

    `wall` gives seconds since 1970 for expiry, `clock` monotonic seconds for limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: AccessSettings,
        *,
        host: str,
        state_dir: Path,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._settings = settings
        self._required = keys_required(settings, host)
        self._hosts = frozenset(name.lower() for name in settings.allowed_hosts)
        self._loopback_only = not self._required and not self._hosts
        self._trusted = networks(settings.trusted_proxies)
        self._keys = Keys(KeyStore(keys_file(settings, state_dir)), settings.key_cache_seconds, wall, clock)
        self._limits = Limits(settings, clock)
        self._audit = Audit(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        peer = scope["client"][0] if scope.get("client") else None
        address = client_address(peer, ",".join(headers.getlist("x-forwarded-for")), self._trusted)
        scope["client"] = (address, 0)
        origin = headers.get("origin")
        status, refusal = 500, None
        access: Access | None = None
        extra: dict[str, str] = {}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(raw=message["headers"])
                for name, value in origins.answer_headers(origin, scope["method"], self._settings.cors_origins).items():
                    out[name] = value
                if self._settings.cors_origins:
                    out.add_vary_header("Origin")
                for name, value in extra.items():
                    out.setdefault(name, value)
                if access is not None and access.principal.key_id is not None:
                    out.add_vary_header("Authorization")
                    if "public" in out.get("cache-control", ""):
                        # A cache shared by several people must not hand a key's answers to those without one.
                        out["Cache-Control"] = out["Cache-Control"].replace("public", "private")
            await send(message)

        try:
            self._check_form(scope, headers)
            if origins.is_preflight(scope["method"], headers):
                await origins.answer_preflight(headers, self._settings.cors_origins)(scope, receive, send_with_headers)
                return
            access = await self._admit(scope, headers, address)
            if access is not None:
                scope[SCOPE_KEY] = access
                scope["explorer.key_id"] = access.principal.key_id
                if not is_below(scope["path"], "/health"):
                    decision = self._limits.request(access.principal)
                    extra.update(self._rate_headers(access.principal, decision))
                    if not decision.allowed:
                        raise self._too_many(access.principal, decision)
        except ApiError as error:
            refusal = error.problem.slug
            await problem_response(Request(scope), error)(scope, receive, send_with_headers)
            return
        except KeyStoreError as error:
            LOGGER.error("the key file cannot be used", extra={"error": str(error)})
            refusal = Problem.UNAVAILABLE.slug
            busy = ApiError(Problem.UNAVAILABLE, "keys cannot be checked at the moment: try again in a few seconds")
            await problem_response(Request(scope), busy)(scope, receive, send_with_headers)
            return
        else:
            await self._app(scope, receive, send_with_headers)
        finally:
            if not is_below(scope["path"], "/health"):
                self._audit.request(
                    method=scope["method"],
                    route=str(getattr(scope.get("route"), "path", "unmatched")),
                    status=status,
                    principal=access.principal if access else None,
                    address=address,
                    query_string=b"" if refusal == Problem.UNKNOWN_PARAMETER.slug else scope["query_string"],
                    seconds=time.monotonic() - started,
                    bytes_scanned=access.bytes_scanned if access else 0,
                    request_id=scope.get("explorer.request_id"),
                    refusal=refusal,
                )

    def _check_form(self, scope: Scope, headers: Headers) -> None:
        """What can be refused without knowing who asks."""
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.header_bytes:
            raise ApiError(
                Problem.TOO_LARGE, f"the request headers have {size} bytes: {self._settings.header_bytes} are allowed"
            )
        if not origins.host_allowed(headers.get("host"), self._hosts, loopback_only=self._loopback_only):
            raise ApiError(
                Problem.FORBIDDEN,
                "Host: this service does not answer under that name; use the name its operator gave"
                " (operator: EXPLORER_API_ACCESS_ALLOWED_HOSTS)",
            )
        if not origins.origin_allowed(scope["method"], headers, self._settings.cors_origins):
            raise ApiError(
                Problem.FORBIDDEN,
                "Origin: pages of another site may not change anything here"
                " (operator: EXPLORER_API_ACCESS_CORS_ORIGINS names those that may)",
            )
        if LOOKS_LIKE_KEY.search(scope["query_string"]) or LOOKS_LIKE_KEY.search(scope.get("raw_path") or b""):
            detail = (
                "the address holds an API key: send it in the header `Authorization: Bearer <key>`, and have this one"
                " revoked, since addresses are written to logs and histories"
            )
            raise ApiError(Problem.UNKNOWN_PARAMETER, detail, errors=[FieldError("Authorization", detail, "header")])

    async def _admit(self, scope: Scope, headers: Headers, address: str) -> Access:
        needed = required_scope(scope["method"], scope["path"])
        who = await self._principal(headers, limit_key(address))
        if who is None:
            if needed is not None and self._required:
                raise ApiError(
                    Problem.UNAUTHORIZED,
                    "this address needs an API key: send `Authorization: Bearer <key>`"
                    " (the service's operator makes keys with `post-explorer keys create`)",
                    headers=_CHALLENGE,
                )
            who = anonymous(limit_key(address))
        if needed is not None and not allows(who.scopes, needed):
            raise ApiError(
                Problem.FORBIDDEN,
                f"this needs a key with the scope `{needed}`; yours has: {', '.join(sorted(who.scopes))}"
                if who.key_id
                else f"this needs a key with the scope `{needed}`: send `Authorization: Bearer <key>`",
            )
        return Access(who, self._limits)

    async def _principal(self, headers: Headers, client: str) -> Principal | None:
        """The key that was sent; None when none was. ApiError 401 for one that is not valid, 429 after too many such."""
        given = headers.getlist("authorization")
        if not given:
            return None
        attempt = self._limits.may_try(client)
        if not attempt.allowed:
            raise rate_limited(
                f"too many wrong keys from your address: try again in {attempt.retry_after} s",
                attempt.retry_after,
                self._settings.failures_per_minute,
            )
        scheme, _, text = given[0].strip().partition(" ")
        token = parse_token(text.strip()) if scheme.lower() == "bearer" and len(given) == 1 else None
        info = await self._keys.check(token) if token is not None else None
        if info is None:
            self._limits.failure(client)
            detail = (
                "Authorization: the key is unknown, revoked or expired: ask the service's operator for another"
                if token is not None
                else "Authorization: it is not `Bearer <key>` with a whole key (bpe_…): copy the key again, all of it"
            )
            raise ApiError(
                Problem.UNAUTHORIZED,
                detail,
                errors=[FieldError("Authorization", detail, "header")],
                headers={"WWW-Authenticate": _CHALLENGE["WWW-Authenticate"] + ', error="invalid_token"'},
            )
        return Principal(info.id, info.scopes, f"key {info.id}", info.requests_per_minute, info.bytes_per_day)

    def _too_many(self, who: Principal, decision: Decision) -> ApiError:
        quota = self._limits.request_quota(who)
        return rate_limited(
            f"{int(quota.amount)} requests a minute are allowed: try again in {decision.retry_after} s",
            decision.retry_after,
            quota.amount,
        )

    def _rate_headers(self, who: Principal, requests: Decision) -> dict[str, str]:
        """`RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers."""
        policies, states = [], []
        for name, quota, decision in (
            ("requests", self._limits.request_quota(who), requests),
            ("bytes-scanned", self._limits.byte_quota(who), self._limits.bytes_left(who)),
        ):
            if not quota.unlimited:
                policies.append(f'"{name}";q={int(quota.amount)};w={int(quota.window)}')
                states.append(f'"{name}";r={decision.remaining};t={decision.reset}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}


class Keys:
    """Checked keys, remembered for a while; use is noted once a minute, so that reading never waits for a write."""

    def __init__(self, store: KeyStore, seconds: float, wall: Callable[[], float], clock: Callable[[], float]) -> None:
        self._store = store
        self._seconds = seconds
        self._wall = wall
        self._clock = clock
        self._checked: OrderedDict[bytes, tuple[float, KeyInfo]] = OrderedDict()
        self._touched: OrderedDict[str, float] = OrderedDict()

    async def check(self, token: Token) -> KeyInfo | None:
        """The key if it is valid now. Raises KeyStoreError."""
        now = self._clock()
        known = self._checked.get(token.digest)
        if known is None or now - known[0] >= self._seconds:
            info = await asyncio.to_thread(self._store.verify, token)
            if info is None:
                self._checked.pop(token.digest, None)
                return None
            known = self._checked[token.digest] = (now, info)
            while len(self._checked) > _CACHED_KEYS:
                self._checked.popitem(last=False)
        info = known[1]
        if not info.valid(self._wall()):
            return None
        if now - self._touched.get(info.id, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[info.id] = now
            while len(self._touched) > _CACHED_KEYS:
                self._touched.popitem(last=False)
            await asyncio.to_thread(self._touch, info.id)
        return info

    def _touch(self, key_id: str) -> None:
        try:
            self._store.touch(key_id, self._wall())
        except KeyStoreError as error:
            # Not knowing when a key was used last is no reason to refuse it.
            LOGGER.warning("the use of a key could not be noted", extra={"key": key_id, "error": str(error)})
